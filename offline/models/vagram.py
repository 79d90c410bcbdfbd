"""VaGraM: value-gradient weighted model learning (Voelcker et al. 2022, arXiv 2204.01464).

A model need only be right where being wrong changes the value. To first order in the error of the
prediction s^' of a true next state s', each value function errs by sum_m dV/ds'_m (s^'_m - s'_m).
The square of that sum would let errors cancel that a larger step no longer cancels, so the loss of
a transition is (their equation 7) the bound on it, but for the factor D, dimension by dimension,

    mean_e sum_m ( dV_e/ds'_m (s^'_m - s'_m) )^2 + (r^ - r)^2,        V_e(s') = Q_e(s', a),

a being what the policy does in s'. Gradients are taken at the true next state, each value
function's own, and nothing but s^' and r^ is differentiated. So the loss is a squared error with
a weight for each transition and dimension; a unit gradient makes it the plain one. Errors are
measured in a model's own units, (s^' - s') / std, and the weights follow: mean_e (g_em std_m)^2.

Each value function's gradients are scaled down to at most a quantile of their norms over all
transitions, also in the model's units, so that the units of the observations do not matter.

A terminal next state has no value: whatever is predicted there, a known or learnt end makes it
worth 0. Its critic's gradient was never trained and is not used (the released code does). Yet a
known rule decides by s^' whether the episode ends, and an end that is missed is bootstrapped
through. So these rows weigh as the others do on average, dimension by dimension.

Metrics:
    vagram/active          0 during the warm-up, 1 after it
    vagram/gradient_norm   bound that gradients were clipped to, mean over value functions
    vagram/weight          mean weight, over rows and dimensions
    vagram/dimensions      (sum_m w_m)^2 / sum_m w_m^2 of the mean weights: how many count
    model/value_error      mean |V_e(s^') - V_e(s')|, V = 0 after a termination
    model/value_error_relative   the same in standard deviations of V(s')

Shape legend: N rows, D state dimensions, E critic heads, H action chunk, A action dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from offline.critics.value import ValueFunction
from offline.errors import InputError
from offline.models.world_model import StateLayout, Steps, WorldModel
from offline.models.world_model_config import WorldModelConfig
from offline.types import Policy


class ValueGradient:
    """V_e(s) = Q_e(s, a) of each head of a critic, a the policy's action there, and dV_e/ds.

    Args:
        critic: its weights are followed, its parameters' gradients left alone. An agent's target
            critic is the steadier one.
        policy: an agent's `evaluating()`: the mode or the mean of a Gaussian policy, the choice of
            EXPO. It is asked about states of many episodes at once.
        layout: of the flat states.
        rows: computed at once.
    """

    def __init__(
        self, critic: ValueFunction, policy: Policy, layout: StateLayout, *, rows: int = 4096
    ) -> None:
        self.critic, self.policy, self.layout, self.rows = critic, policy, layout, rows

    @torch.no_grad()
    def act(self, state: Tensor, generator: Generator | None) -> Tensor:
        """What the policy does in each state (N, D): (N, H, A)."""
        chunk, parts = self.critic.spec.chunk, self._like_critic(state).split(self.rows)
        drawn = [self.policy.sample(self.layout.split(s), 1, generator) for s in parts]
        return torch.cat([act[:, 0, :chunk] for act in drawn])

    @torch.no_grad()
    def values(self, state: Tensor, act: Tensor) -> Tensor:
        """V_e of (N, D) with the actions (N, H, A): (E, N)."""
        with _frozen(self.critic):
            parts = [
                self.critic.score(self.critic.encode(self.layout.split(s)), a[:, None])[..., 0]
                for s, a in self._parts(state, act)
            ]
        return torch.cat(parts, dim=1).to(state)

    def gradient(self, state: Tensor, act: Tensor, head: int) -> Tensor:
        """dV_e/ds of one head in the environment's units, the action held fixed: (N, D)."""
        which, gradients = torch.tensor([head]), []
        with _frozen(self.critic), torch.enable_grad():
            for s, a in self._parts(state, act):
                s.requires_grad_()
                features = self.critic.encode(self.layout.split(s), which)
                total = self.critic.score(features, a[:, None], which).sum()
                gradients.append(torch.autograd.grad(total, s)[0])
        return torch.cat(gradients).to(state)

    def _parts(self, state: Tensor, act: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        both = (self._like_critic(x).split(self.rows) for x in (state, act))
        return zip(*both, strict=True)

    def _like_critic(self, x: Tensor) -> Tensor:
        """On the critic's device, a tensor of its own that no graph leads to."""
        return x.detach().to(next(self.critic.parameters()), copy=True)


def clip_norms(gradient: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
    """Scale rows of (N, D) down to the given quantile of their norms: (N, D), and that bound ()."""
    norm = gradient.norm(dim=1, keepdim=True)
    bound = torch.quantile(norm, quantile)
    shrink = (bound / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1)
    return gradient * shrink, bound


@torch.no_grad()
def vagram_weights(
    values: ValueGradient, steps: Steps, std: Tensor, clip: float, generator: Generator | None
) -> tuple[Tensor, dict[str, float]]:
    """Weights of the squared errors of a model, see the top of the file.

    Args:
        values: whose gradients.
        steps: of which the next state and whether it is terminal count.
        std: (D,) what the model divides its errors by before they are squared and weighted. A model
            that divides those of its reward too should have that divided out here: std / reward_std
            keeps the two parts of the loss in the proportion above.
        clip: quantile of the gradients' norms that they are clipped to; 1 clips none.
        generator: for policies that draw.

    Returns:
        (N, D), detached, on the steps' device, and metrics.

    Raises:
        InputError: a gradient is not finite.
    """
    weights = torch.ones_like(steps.next_state)
    alive = steps.terminated == 0
    if not alive.any():
        return weights, {}
    state = steps.next_state[alive]
    act, heads = values.act(state, generator), values.critic.ensemble
    total, bounds = torch.zeros_like(state), []
    for head in range(heads):  # one after another: a table of them all would be E times as large
        clipped, bound = clip_norms(values.gradient(state, act, head) * std, clip)
        total += clipped.square_()
        bounds.append(float(bound))
    total /= heads
    mean = total.mean(0)
    if not torch.isfinite(mean).all():
        raise InputError(
            "expected finite value gradients, received some that are not: the critic has diverged; "
            "try a smaller --lr"
        )
    weights[alive] = total
    weights[~alive] = mean
    spread = float(mean.square().sum())
    return weights, {
        "vagram/gradient_norm": sum(bounds) / heads,
        "vagram/weight": float(mean.mean()),
        "vagram/dimensions": float(mean.sum()) ** 2 / spread if spread else 0.0,
    }


class VaGraM:
    """The weights of each training of a model; ones while the value does not mean anything yet.

    Args:
        values: whose gradients.
        config: `vagram_clip`, and `vagram_warmup` steps from the first training on.
    """

    def __init__(self, values: ValueGradient, config: WorldModelConfig) -> None:
        self.values, self.clip, self.warmup = values, config.vagram_clip, config.vagram_warmup
        self.first: int | None = None
        """Step of the first training."""
        self.metrics: dict[str, float] = {}
        """Of the latest weights."""

    def weights(self, steps: Steps, std: Tensor, step: int, generator: Generator | None) -> Tensor:
        """(N, D) for a training at environment step `step`; the rest as of `vagram_weights`."""
        if self.first is None:
            self.first = step
        if step - self.first < self.warmup:
            self.metrics = {"vagram/active": 0.0}
            return torch.ones_like(steps.next_state)
        weights, metrics = vagram_weights(self.values, steps, std, self.clip, generator)
        self.metrics = {"vagram/active": 1.0} | metrics
        return weights

    def state_dict(self) -> dict[str, Any]:
        """When the warm-up began."""
        return {"first": self.first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned."""
        self.first = state["first"]


@torch.no_grad()
def value_error(
    model: WorldModel, values: ValueGradient, steps: Steps, generator: Generator
) -> dict[str, float]:
    """By how much a model's predictions miss the value of what comes next.

    The policy acts anew in the predicted state, so this is the whole error of V, not its first
    order; a policy that draws gets the same draws in both states.

    Args:
        model: of the environment.
        values: whose heads; each one's error counts alike.
        steps: held out from the model's training.
        generator: for model and policy.
    """
    predicted = model.predict(steps.state, steps.act, generator)
    again = Generator(generator.device)
    again.set_state(generator.get_state())

    def worth(state: Tensor, terminated: Tensor, draws: Generator) -> Tensor:
        return values.values(state, values.act(state, draws)).masked_fill(terminated != 0, 0.0)

    true = worth(steps.next_state, steps.terminated, generator)
    error = float((worth(predicted.next_state, predicted.terminated, again) - true).abs().mean())
    spread = float(true.std(1, correction=0).mean())
    return {
        "model/value_error": error,
        "model/value_error_relative": error / spread if spread else 0.0,
    }


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients of parameters; both as they were afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    learning = [param for param in module.parameters() if param.requires_grad]
    try:
        module.eval()
        for param in learning:
            param.requires_grad_(False)
        yield
    finally:
        for part, training in modes:
            part.training = training
        for param in learning:
            param.requires_grad_(True)
