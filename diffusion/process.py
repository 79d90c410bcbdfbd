"""The reverse process of a `diffusers` scheduler as one Gaussian per step.

DDIM (any eta) and DDPM both draw x_{t-1} ~ N(mean_t, std_t^2 I) with

    x0_hat, eps_hat  from the network's output (epsilon, v_prediction or sample)
    mean_t = c_x0 x0_hat + c_eps eps_hat + c_xt x_t

so a table of four numbers per step is all that sampling and scoring need. The table is read off the
scheduler itself (its timesteps, its cumulative alphas, its variance rule), in float64. Samplers of
flow models have the same form (`flow.py`): there a = 1 - t, s = t and the output is eps - x0.

Shapes: T denoising steps, B batch. Sources: DDPM arXiv 2006.11239 eq. 7; DDIM arXiv 2010.02502
eq. 12 and 16; v-prediction arXiv 2202.00512 appendix D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.errors import InputError

DETERMINISTIC_STD = 1e-6  # below this a step has no density worth scoring (DDPM's last is 1e-10)


@dataclass(frozen=True)
class ReverseProcess:
    """Per-step coefficients, each (T,) float64 on the CPU, in sampling order (noisiest first)."""

    timesteps: Tensor
    sqrt_alpha: Tensor  # sqrt of the cumulative alpha at t
    sqrt_noise: Tensor  # sqrt(1 - cumulative alpha)
    c_x0: Tensor
    c_eps: Tensor
    c_xt: Tensor
    std: Tensor
    prediction_type: str
    clip_range: float | None
    _placed: dict[tuple[str, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Tables where networks compute, copied there once: a small copy stops a GPU's queue."""

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    @property
    def stochastic(self) -> Tensor:
        """(T,) bool: steps that draw noise, and so have a log-probability."""
        return self.std > DETERMINISTIC_STD

    @property
    def sensitivity(self) -> Tensor:
        """(T,) |d mean / d output| / std: how strongly the log-prob reacts to the network."""
        d_x0, d_eps = {
            "epsilon": (-self.sqrt_noise / self.sqrt_alpha, torch.ones_like(self.std)),
            "v_prediction": (-self.sqrt_noise, self.sqrt_alpha),
            "sample": (torch.ones_like(self.std), -self.sqrt_alpha / self.sqrt_noise),
            "flow": (-self.sqrt_noise, self.sqrt_alpha),
        }[self.prediction_type]
        return (self.c_x0 * d_x0 + self.c_eps * d_eps).abs() / self.std.clamp_min(1e-30)

    def mean(self, output: Tensor, x_t: Tensor, step: Tensor) -> Tensor:
        """Mean of x_{t-1} given the network's output; float32, same shape as `x_t` (B, ...).

        `step` (B,) int64 indexes the table, so a batch may mix timesteps.
        """
        x = x_t.float()
        x0, eps = self._parts(output, x, step)
        c_x0, c_eps, c_xt = (self._at(name, step, x) for name in ("c_x0", "c_eps", "c_xt"))
        return c_x0 * x0 + c_eps * eps + c_xt * x

    def x0_hat(self, output: Tensor, x_t: Tensor, step: Tensor) -> Tensor:
        """The prediction of x_0 (B, ...) float32 that the network's output is; see `mean`."""
        return self._parts(output, x_t.float(), step)[0]

    def _parts(self, output: Tensor, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """x0_hat and eps_hat."""
        output = output.float()
        a, s = self._at("sqrt_alpha", step, x), self._at("sqrt_noise", step, x)
        if self.prediction_type == "epsilon":
            eps, x0 = output, (x - s * output) / a
        elif self.prediction_type == "v_prediction":
            eps, x0 = a * output + s * x, a * x - s * output
        elif self.prediction_type == "flow":
            eps, x0 = x + a * output, x - s * output
        else:
            x0, eps = output, (x - a * output) / s
        if self.clip_range is not None:
            x0 = x0.clamp(-self.clip_range, self.clip_range)  # eps stays, as in scheduler.step
        return x0, eps

    def std_at(self, step: Tensor, like: Tensor) -> Tensor:
        """Standard deviation of each sample's step, broadcastable against `like` (B, ...)."""
        return self._at("std", step, like)

    def timesteps_at(self, step: Tensor) -> Tensor:
        """(B,) the scheduler's timesteps of the steps (B,), where `step` is."""
        return self._table("timesteps", step.device)[step]

    def log_prob(self, x_prev: Tensor, mean: Tensor, step: Tensor) -> Tensor:
        """(B,) log N(x_prev; mean, std^2), averaged over dimensions (DDPO's convention), in nats.

        Multiply by D for the joint density. Deterministic steps give 0, never NaN.
        """
        std = self._at("std", step, mean)
        noisy = std > DETERMINISTIC_STD
        safe = torch.where(noisy, std, torch.ones_like(std))
        z = (x_prev.float() - mean) / safe
        per_dim = -0.5 * z.square() - safe.log() - 0.5 * math.log(2 * math.pi)
        return torch.where(noisy, per_dim, torch.zeros_like(per_dim)).flatten(1).mean(1)

    def _at(self, name: str, step: Tensor, like: Tensor) -> Tensor:
        return self._table(name, like.device)[step].reshape(-1, *[1] * (like.ndim - 1))

    def _table(self, name: str, device: torch.device) -> Tensor:
        """A table by its name on `device`: float32, but timesteps as the scheduler has them."""
        if (name, device) not in self._placed:
            table = getattr(self, name)
            dtype = table.dtype if name == "timesteps" else torch.float32
            self._placed[name, device] = table.to(device, dtype)
        return self._placed[name, device]


def reverse_process(scheduler, num_inference_steps: int, eta: float = 1.0) -> ReverseProcess:
    """Read a `DDIMScheduler` or `DDPMScheduler`; `eta` applies to DDIM alone.

    Calls `scheduler.set_timesteps`. Raises InputError for other schedulers, learned variances,
    dynamic thresholding, timesteps outside the schedule, and an eta so large that a step's
    direction term would be imaginary.
    """
    kind, config = type(scheduler).__name__, scheduler.config
    if kind not in ("DDIMScheduler", "DDPMScheduler"):
        raise InputError(
            f"scheduler is {kind}, but step densities are known for DDIMScheduler and "
            "DDPMScheduler; pass --scheduler ddim to swap it"
        )
    if config.prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise InputError(f"prediction_type {config.prediction_type!r} is not supported")
    if config.get("thresholding"):
        raise InputError("dynamic thresholding has no step density; set thresholding=False")
    train_steps = config.num_train_timesteps
    if not 1 <= num_inference_steps <= train_steps:
        raise InputError(
            f"num_inference_steps must be between 1 and {train_steps}, got {num_inference_steps}"
        )
    scheduler.set_timesteps(num_inference_steps)
    timesteps = scheduler.timesteps.cpu().long()
    for t in (int(timesteps.min()), int(timesteps.max())):
        if not 0 <= t < train_steps:  # diffusers' trailing spacing does so at 61 steps, by rounding
            raise InputError(
                f"{num_inference_steps} steps with {config.timestep_spacing!r} spacing visit "
                f"timestep {t}, outside 0..{train_steps - 1}; use another number of steps"
            )
    cumulative = scheduler.alphas_cumprod.double().cpu()
    alpha = cumulative[timesteps]
    if kind == "DDIMScheduler":
        previous = timesteps - config.num_train_timesteps // num_inference_steps
        final = torch.as_tensor(scheduler.final_alpha_cumprod).double().cpu()
        alpha_prev = torch.where(previous >= 0, cumulative[previous.clamp_min(0)], final)
        variance = (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
        std = eta * variance.clamp_min(0).sqrt()
        direction = 1 - alpha_prev - std**2
        if (direction < -1e-9).any():
            raise InputError(f"eta={eta} leaves no room for the signal at some step; use eta <= 1")
        c_x0, c_eps, c_xt = alpha_prev.sqrt(), direction.clamp_min(0).sqrt(), torch.zeros_like(std)
    else:
        previous = torch.tensor([int(scheduler.previous_timestep(int(t))) for t in timesteps])
        alpha_prev = torch.where(
            previous >= 0, cumulative[previous.clamp_min(0)], torch.ones_like(alpha)
        )
        step_alpha = alpha / alpha_prev
        c_x0 = alpha_prev.sqrt() * (1 - step_alpha) / (1 - alpha)
        c_xt = step_alpha.sqrt() * (1 - alpha_prev) / (1 - alpha)
        c_eps = torch.zeros_like(c_x0)
        std = _ddpm_std(config.variance_type, alpha, alpha_prev, step_alpha)
        std = torch.where(timesteps > 0, std, torch.zeros_like(std))  # no noise at t = 0
    return ReverseProcess(
        timesteps=timesteps,
        sqrt_alpha=alpha.sqrt(),
        sqrt_noise=(1 - alpha).sqrt(),
        c_x0=c_x0,
        c_eps=c_eps,
        c_xt=c_xt,
        std=std,
        prediction_type=config.prediction_type,
        clip_range=config.clip_sample_range if config.clip_sample else None,
    )


def _ddpm_std(kind: str, alpha: Tensor, alpha_prev: Tensor, step_alpha: Tensor) -> Tensor:
    small = ((1 - alpha_prev) / (1 - alpha) * (1 - step_alpha)).clamp_min(1e-20)
    if kind in ("fixed_small", "fixed_small_log"):
        return small.sqrt()
    if kind == "fixed_large":
        return (1 - step_alpha).sqrt()
    raise InputError(  # learned ones need a second output; fixed_large_log is NaN in diffusers
        f"variance_type {kind!r} has no fixed step density; use fixed_small or fixed_large"
    )
