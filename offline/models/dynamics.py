"""`Dynamics`: an ensemble of networks that predict one environment step.

    x = (limit((s - mean_s) / std_s), a),    limit as in `offline.networks.normalizer`
    (y, log variance, logit) = f_e(x)
    (s' - s, r) = mean + std * y,    terminated = logit > 0

Each member e is (Linear, SiLU) x layers, Linear. A probabilistic one draws y from a Gaussian whose
log variance it predicts too, between learnt soft bounds (PETS, Chua et al. 2018, arXiv 1805.12114,
appendix A.1). A prediction is made by one of the elites, drawn for each row and step.

Shape legend: E members, N rows, D state dimensions, A action dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from offline.draws import integers, normal
from offline.models.world_model import Prediction, StateLayout, Steps
from offline.networks.linear import SMALL, linear
from offline.networks.normalizer import STD_FLOOR, limit
from offline.networks.stacked import Layer, run

Dtype = Literal["float32", "bfloat16"]
Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(state (N, D), act (N, A) normalised, next_state (N, D)) -> (N,)."""

# What changes less than this share of its spread in a step, or this share of a mean reward, is
# rounding: dividing by it would have the members learn noise.
CHANGE_FLOOR = 1e-3
REWARD_FLOOR = 1e-6


@dataclass(frozen=True)
class Outputs:
    """What C members say of N rows each, in standardised units."""

    mean: Tensor
    """(C, N, D + 1): the change of the state, and the reward last."""
    log_var: Tensor | None
    """(C, N, D + 1); None of deterministic members."""
    logit: Tensor
    """(C, N): above 0 is a termination."""


class Dynamics(nn.Module):
    """A learnt `offline.models.world_model.WorldModel`; `offline.models.model_training` trains it.

    Members are independent of each other: no parameter is shared. Each layer of all members is one
    parameter with E in front.

    Args:
        layout: of the flat states.
        action: A.
        hidden: units of each hidden layer.
        ensemble: E.
        elites: how many members predict; all of them, if E is less.
        probabilistic: members predict a Gaussian, else numbers.
        dtype: "bfloat16" multiplies hidden layers in it while learning, that is with gradients
            enabled; predictions never use it.
        reward: known rule for the reward, in the units to learn in, instead of a learnt one.
        terminated: known rule for termination, (N,) bool, instead of a learnt one.
    """

    state_mean: Tensor
    state_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    reward_range: Tensor
    """(2,) least and most in the data; nothing else is predicted, as a sparse reward's steps are
    extrapolated to what nobody pays."""
    elites: Tensor
    """Members that predict; the first ones before any training."""

    def __init__(
        self,
        layout: StateLayout,
        action: int,
        hidden: Sequence[int] = (200, 200, 200, 200),
        ensemble: int = 7,
        elites: int = 5,
        *,
        probabilistic: bool = False,
        dtype: Dtype = "float32",
        reward: Rule | None = None,
        terminated: Rule | None = None,
    ) -> None:
        super().__init__()
        self.layout, self.ensemble, self.probabilistic = layout, ensemble, probabilistic
        self.dtype = dtype
        self.reward_rule, self.termination_rule = reward, terminated
        outputs = layout.dim + 1
        sizes = (layout.dim + action, *hidden, outputs * (1 + probabilistic) + 1)
        self.weights = nn.ParameterList(
            # as PETS and MBPO begin
            nn.init.trunc_normal_(torch.empty(ensemble, b, a), std=1 / (2 * math.sqrt(a)))
            for a, b in pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(ensemble, size) for size in sizes[1:])
        if probabilistic:
            self.least_log_var = nn.Parameter(torch.full((ensemble, outputs), -10.0))
            self.most_log_var = nn.Parameter(torch.full((ensemble, outputs), 0.5))
        for name, size in (("state", layout.dim), ("target", outputs)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.register_buffer("reward_range", torch.tensor([-math.inf, math.inf]))
        self.register_buffer("elites", torch.arange(min(elites, ensemble)))

    @property
    def delta_std(self) -> Tensor:
        """(D,) what errors of the next state are divided by."""
        return self.target_std[:-1]

    @property
    def reward_std(self) -> Tensor:
        """() what errors of the reward are divided by."""
        return self.target_std[-1]

    # -- units

    @torch.no_grad()
    def normalize_by(self, steps: Steps) -> None:
        """Take the statistics of these steps for inputs and targets."""
        change = (steps.next_state - steps.state).double()
        state, reward = steps.state.double(), steps.reward.double()
        self.state_mean.copy_(state.mean(0))
        self.state_std.copy_(state.std(0, correction=0).clamp(min=STD_FLOOR))
        self.target_mean.copy_(torch.cat([change.mean(0), reward.mean()[None]]))
        self.reward_range.copy_(torch.stack([reward.min(), reward.max()]))
        least = CHANGE_FLOOR * self.state_std.double()
        self.target_std[:-1] = change.std(0, correction=0).maximum(least)
        least = REWARD_FLOOR * reward.mean().abs().clamp(min=1)
        self.target_std[-1] = reward.std(correction=0).maximum(least)

    def inputs(self, state: Tensor, act: Tensor) -> Tensor:
        """(N, D) and (N, A) -> (N, D + A), what `outputs` takes."""
        x = limit((state - self.state_mean) / self.state_std)
        return torch.cat([x, act], dim=-1)

    def targets(self, steps: Steps) -> Tensor:
        """(N, D + 1), what `Outputs.mean` should be."""
        change = steps.next_state - steps.state
        both = torch.cat([change, steps.reward[:, None]], dim=-1)
        return (both - self.target_mean) / self.target_std

    # -- members

    def outputs(self, x: Tensor) -> Outputs:
        """(E, N, D + A), for each member its own rows."""
        return self._read(self(x), None)

    def forward(self, x: Tensor) -> Tensor:
        """(E, N, D + A) -> (E, N, outputs), all that the networks give."""
        # A loop takes oneDNN's product (see `offline.networks.linear`) where that is the faster
        # one, and keeps its activations in cache: forward, backward and Adam of 7 members of
        # 4 x 200 at batch 256 took 14.8 ms in a loop, 20.4 in a loop of torch's own product and
        # 19.8 by baddbmm; 2,000 held-out rows 23, 43 and 46 ms. Of 2 x 64, 2.7, 2.6 and 2.2 ms.
        product = x.shape[1] * max(weight[0].numel() for weight in self.weights)
        if x.device.type == "cpu" and product >= SMALL:
            return self._looped(x)
        return self._batched(x)

    def _batched(self, x: Tensor) -> Tensor:
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias[:, None], F.silu(x) if i else x, weight.mT)
        return x

    def _looped(self, x: Tensor) -> Tensor:
        return run(x.unbind(), self._layers(), "silu")

    def _layers(self) -> list[Layer]:
        low = self.dtype == "bfloat16" and torch.is_grad_enabled()
        inner = range(1, len(self.weights) - 1)
        pairs = zip(self.weights, self.biases, strict=True)
        return [Layer(*p, bare=i == 0, low=low and i in inner) for i, p in enumerate(pairs)]

    def _read(self, raw: Tensor, members: Tensor | None) -> Outputs:
        """Raw outputs (C, N, outputs), or with `members` (N,) those (N, outputs) of one per row."""
        size = self.layout.dim + 1
        mean, logit = raw[..., :size], raw[..., -1]
        if not self.probabilistic:
            return Outputs(mean, None, logit)
        most, least = (
            p[:, None] if members is None else p[members]
            for p in (self.most_log_var, self.least_log_var)
        )
        log_var = most - F.softplus(most - raw[..., size:-1])
        return Outputs(mean, least + F.softplus(log_var - least), logit)

    # -- a step

    @torch.no_grad()
    def predict(self, state: Tensor, act: Tensor, generator: Generator | None) -> Prediction:
        """One step from (N, D) with normalised actions (N, A), each by an elite of its own draw.

        Args:
            state: (N, D), in the environment's units.
            act: (N, A), normalised.
            generator: draws the elites, and the noise of probabilistic ones; None is torch's.
        """
        members = self.elites[integers(len(self.elites), len(state), generator, state)]
        out = self._read(self._by_member(self.inputs(state, act), members), members)
        y = out.mean
        if out.log_var is not None:
            y = y + (out.log_var / 2).exp() * normal(y.shape, generator, y)
        y = self.target_mean + self.target_std * y
        next_state, terminated = state + y[:, :-1], out.logit > 0
        reward = y[:, -1].clamp(*self.reward_range)
        if self.reward_rule is not None:
            reward = self.reward_rule(state, act, next_state)
        if self.termination_rule is not None:
            terminated = self.termination_rule(state, act, next_state)
        return Prediction(next_state, reward, terminated)

    def _by_member(self, x: Tensor, members: Tensor) -> Tensor:
        """(N, D + A), each row by its member (N,) alone: (N, outputs)."""
        order = members.argsort(stable=True)
        counts = members.bincount(minlength=self.ensemble).tolist()
        raw = x.new_empty(len(x), self.biases[-1].shape[1])
        for e, rows in enumerate(order.split(counts)):
            if len(rows):
                layers = zip(self.weights, self.biases, strict=True)
                raw[rows] = _run(x[rows], [(w[e], b[e]) for w, b in layers])
        return raw


def _run(x: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One member: (N, inputs) -> (N, outputs)."""
    for i, (weight, bias) in enumerate(layers):
        x = linear(F.silu(x) if i else x, weight, bias)
    return x
