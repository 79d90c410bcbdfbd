"""The forward process: clean samples noised at drawn times, and how well a network undoes it.

    x_t = a(t) x_0 + s(t) eps        a, s: sqrt of the cumulative alpha and of its rest (diffusion),
                                     or 1 - t and t (flow matching)
    l   = mean over dimensions of |network(x_t, t, c) - target|^2

with the target the network's own prediction type: eps, a eps - s x_0 (v_prediction), x_0, or
eps - x_0 (flow). -l / (2 w) plays the part of a log-likelihood per dimension, up to a constant:

    simple  2 w = 1, the loss that pipelines are trained with
    elbo    the evidence lower bound's weight, with which D times the mean over uniform t is a log
            density in nats: l is turned into the error of eps and weighed by -d log(a^2 / s^2)/dt

Objectives on the forward process need clean samples only, drawn by any sampler. Times and noises
are *shared within a group*: images of one prompt are compared under the same noise.

Shapes: M samples, G groups, S draws of (t, eps) for each group, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.chain import Condition, Predictor, draw, sent
from diffusion.errors import InputError

EDGE = 1e-3  # of the time interval, left out at both ends where a weight diverges


@dataclass(frozen=True)
class ForwardProcess:
    """A scheduler's forward process, tabulated over N training times (noisiest last).

    timestep: (N,) what the network is given. a, s: (N,) float64. slope: (N,) -d log(a^2 / s^2)/dt
    with t running over [0, 1]. prediction_type: epsilon, v_prediction, sample or flow.
    """

    timestep: Tensor
    a: Tensor
    s: Tensor
    slope: Tensor
    prediction_type: str
    _placed: dict[tuple[str, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Tables where networks compute, copied there once."""

    def noised(self, x0: Tensor, noise: Tensor, at: Tensor) -> Tensor:
        """x_t (B, ...) float32; `at` (B,) indexes the table."""
        return self._at("a", at, x0) * x0.float() + self._at("s", at, x0) * noise

    def target(self, x0: Tensor, noise: Tensor, at: Tensor) -> Tensor:
        """What the network should say at x_t, float32."""
        a, s, x0 = self._at("a", at, x0), self._at("s", at, x0), x0.float()
        return {
            "epsilon": lambda: noise,
            "v_prediction": lambda: a * noise - s * x0,
            "sample": lambda: x0,
            "flow": lambda: noise - x0,
        }[self.prediction_type]()

    def x0(self, output: Tensor, x_t: Tensor, at: Tensor) -> Tensor:
        """The clean sample that an output means, float32."""
        a, s, output = self._at("a", at, x_t), self._at("s", at, x_t), output.float()
        return {
            "epsilon": lambda: (x_t - s * output) / a,
            "v_prediction": lambda: a * x_t - s * output,
            "sample": lambda: output,
            "flow": lambda: x_t - s * output,
        }[self.prediction_type]()

    def half_weight(self, kind: str, at: Tensor) -> Tensor:
        """(B,) 1 / (2 w): what turns l into a log-likelihood per dimension."""
        if kind == "simple":
            return torch.ones(len(at))
        if kind != "elbo":
            raise InputError(f"weight {kind!r}: expected simple or elbo")
        a, s = self.a[at], self.s[at]
        # |error of eps|^2 = k |error of the output|^2, by the target's definition.
        k = {
            "epsilon": torch.ones_like(a),
            "v_prediction": a**2,  # a^2 + s^2 = 1
            "sample": (a / s) ** 2,
            "flow": a**2,
        }[self.prediction_type]
        return (0.5 * self.slope[at] * k).float()

    def timesteps_at(self, at: Tensor, device: torch.device) -> Tensor:
        """(B,) what the network is given, on `device`."""
        return self._table("timestep", device)[sent(at, device)]

    def _at(self, name: str, at: Tensor, like: Tensor) -> Tensor:
        values = self._table(name, like.device)[sent(at, like.device)]
        return values.reshape(-1, *[1] * (like.ndim - 1))

    def _table(self, name: str, device: torch.device) -> Tensor:
        """A table by its name on `device`: float32, but times as the network takes them."""
        if (name, device) not in self._placed:
            table = getattr(self, name)
            dtype = table.dtype if name == "timestep" else torch.float32
            self._placed[name, device] = table.to(device, dtype)
        return self._placed[name, device]


def forward_process(scheduler) -> ForwardProcess:
    """Read a diffusers scheduler: cumulative alphas, or flow matching with its static shift."""
    config = scheduler.config
    n = int(config.num_train_timesteps)
    if hasattr(scheduler, "alphas_cumprod"):
        alpha = scheduler.alphas_cumprod.double().cpu()
        timestep, a, s = torch.arange(n), alpha.sqrt(), (1 - alpha).sqrt()
        kind = config.prediction_type
    elif type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
        t = torch.arange(1, n + 1, dtype=torch.float64) / n
        shift = float(getattr(scheduler, "shift", 1.0))
        if not config.get("use_dynamic_shifting"):
            t = shift * t / (1 + (shift - 1) * t)
        timestep, a, s, kind = (1000 * t).float(), 1 - t, t, "flow"
    else:
        raise InputError(f"no forward process is known for {type(scheduler).__name__}")
    log_snr = 2 * (a.clamp_min(1e-9).log() - s.clamp_min(1e-9).log())
    slope = -torch.gradient(log_snr, spacing=1.0 / n)[0]
    return ForwardProcess(timestep, a, s, slope.clamp_min(0), kind)


@dataclass(frozen=True)
class Draws:
    """(t, eps) for each group: `at` (G, S) indexes the table, `noise` (G, S, ...)."""

    at: Tensor
    noise: Tensor


def draw_times(
    process: ForwardProcess,
    shape: Sequence[int],
    generators: Sequence[Sequence[torch.Generator]],
    device: torch.device | str = "cpu",
) -> Draws:
    """S stratified times and noises for each of G groups.

    Time s of a group is uniform in the s-th of S equal parts of the schedule, without its ends.

    Args:
        process: whose times.
        shape: of one sample.
        generators: G lists of S, one for each draw, so that no draw depends on the others.
        device: of the noise.
    """
    n, parts = len(process.timestep), len(generators[0])
    like = torch.empty(0, device=device)
    at, noise = [], []
    for row in generators:
        jitter = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in row])
        time = EDGE + (1 - 2 * EDGE) * (torch.arange(parts) + jitter) / parts
        at.append((time * n).long().clamp(0, n - 1))
        noise.append(draw(shape, row, like))
    return Draws(torch.stack(at), torch.stack(noise))


@dataclass(frozen=True)
class Denoised:
    """What a network said of M noised samples, for an objective to make numbers of.

    x0, x_t, target, output: (M, ...). at: (M,) times. output_anchor, output_reference: the same
    under the average of the weights and under the reference, where the objective asks for it.
    """

    process: ForwardProcess
    x0: Tensor
    x_t: Tensor
    at: Tensor
    target: Tensor
    output: Tensor
    output_anchor: Tensor | None = None
    output_reference: Tensor | None = None

    def half_weight(self, kind: str) -> Tensor:
        """(M,) 1 / (2 w), where networks compute."""
        return sent(self.process.half_weight(kind, self.at), self.x_t.device)

    def loss(self) -> Tensor:
        """l: (M,) float32."""
        return (self.output.float() - self.target).square().flatten(1).mean(1)


def denoise(
    predict: Predictor,
    process: ForwardProcess,
    x0: Tensor,
    draws: Draws,
    group: Tensor,
    rows: Tensor,
    which: Tensor,
    cond: Condition,
    anchor: Predictor | None = None,
    reference: Predictor | None = None,
) -> Denoised:
    """Noise samples `rows` with draw `which` of their group and ask the network; differentiable.

    Args:
        predict: the network, guidance included where it was sampled with.
        x0: (M, ...) clean samples.
        draws: times and noises of each group.
        group: (M,) index of each sample's group in `draws`.
        rows, which: (m,) pairs of a sample and one of the S draws.
        cond: one row per pair.
        anchor, reference: asked as well, without gradient.
    """
    of = group[rows]
    device = draws.noise.device
    at, noise = draws.at[of, which], draws.noise[sent(of, device), sent(which, device)]
    clean = sent(x0[sent(rows, x0.device)], device).float()
    x_t, target = process.noised(clean, noise, at), process.target(clean, noise, at)
    t = process.timesteps_at(at, device)
    with torch.no_grad():
        others = [None if one is None else one(x_t, t, cond) for one in (anchor, reference)]
    return Denoised(process, clean, x_t, at, target, predict(x_t, t, cond), *others)
