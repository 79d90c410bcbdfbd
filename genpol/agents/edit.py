"""The edit policy of EXPO: a small move of an action that somebody else proposed.

    a~ = clip(a + beta * tanh(u), -1, 1),   u ~ Normal(mean(s, a), std(s, a))      arXiv 2507.07986

The expressive policy keeps its own, stable objective; only the edit follows the value's gradient.
It maximises

    mean_e Q_e(s, a~) - temperature * log pi(tanh(u) | s, a)

on the actions of the buffer. The temperature holds the entropy of tanh(u) at its target. The
released code counts the entropy of beta * tanh(u) instead, which is D log(beta) lower, so that a
target of -D/2 is out of reach for beta below .3 and the temperature climbs.

Shape legend: B batch, K candidates, H action chunk, A action dimension, D = H * A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from genpol.steering.steered import Edits
from offline.critics.td import Encoded
from offline.networks.heads import TanhGaussian
from offline.networks.normalizer import Change
from offline.networks.optimizers import load_optimizer


class EditPolicy(nn.Module):
    """Moves of at most beta in each dimension of a normalised action chunk.

    Args:
        features: of the encoded observation.
        action: D.
        hidden: units of each hidden layer.
        scale: beta.
        clip: clip edited actions to [-1, 1].
        layer_norm: of the hidden layers.
    """

    log_scale: Tensor

    def __init__(
        self,
        features: int,
        action: int,
        hidden: tuple[int, ...],
        *,
        scale: float,
        clip: bool,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        self.move = TanhGaussian(features + action, action, hidden, layer_norm=layer_norm)
        self.register_buffer("log_scale", torch.tensor(math.log(scale)))
        self.features, self.dim, self.hidden, self.clip = features, action, hidden, clip

    @property
    def scale(self) -> Tensor:
        """beta."""
        return self.log_scale.exp()

    def forward(
        self, features: Tensor, act: Tensor, generator: Generator | None, n: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """n edits of each of K chunks.

        Args:
            features: (B, F).
            act: (B, K, H, A).
            generator: draws them.
            n: how many of each.

        Returns:
            Edited chunks (B, K n, H, A), the moves tanh(u) (B, K n, H, A) and their
            log pi(tanh(u)) (B, K n).
        """
        rows, count, *shape = act.shape
        inputs = torch.cat([features[:, None].expand(-1, count, -1), act.flatten(2)], dim=-1)
        move, log_prob = self.move.sample(inputs.flatten(0, 1), n, generator)
        move = move.view(rows, count * n, *shape)
        return self.apply_move(act, move), move, log_prob.view(rows, count * n)

    def apply_move(self, act: Tensor, move: Tensor) -> Tensor:
        """clip(a + beta * move): (B, K, H, A) and (B, K n, H, A) -> (B, K n, H, A)."""
        repeats = move.shape[1] // act.shape[1]
        edited = act.repeat_interleave(repeats, dim=1) + self.scale * move
        return edited.clamp(-1, 1) if self.clip else edited


EntropyOf = Literal["unscaled", "released"]
Score = Callable[[Tensor], Tensor]  # (B, K, H, A) -> (E, B, K)


class EditLearner:
    """The edit policy with its temperature, and their optimisers.

    Args:
        policy: to train.
        lr: of policy and temperature.
        init_temperature: in units of the reward.
        target_entropy: default -D / 2.
        entropy_of: see the top of the file.
        scale_lr: learning rate of an adaptive beta; None keeps it as it is.
    """

    SCALE = (0.01, 1.0)

    def __init__(
        self,
        policy: EditPolicy,
        *,
        lr: float,
        init_temperature: float,
        target_entropy: float | None = None,
        entropy_of: EntropyOf = "unscaled",
        scale_lr: float | None = None,
    ) -> None:
        self.policy, self.entropy_of, self.scale_lr = policy, entropy_of, scale_lr
        self.target_entropy = -policy.dim / 2 if target_entropy is None else target_entropy
        device = policy.log_scale.device
        self.log_temperature = torch.tensor(
            math.log(init_temperature), device=device, requires_grad=True
        )
        self.params = list(policy.move.parameters())
        self.optimizer = torch.optim.Adam(self.params, lr=lr, fused=True)
        self.temperature_optimizer = torch.optim.Adam([self.log_temperature], lr=lr)
        # beta itself is what Adam steps on: 1e-4 is then the same at .01 and at 1.
        self.beta = policy.log_scale.detach().exp().requires_grad_(True)
        self.scale_optimizer = torch.optim.Adam([self.beta], lr=scale_lr or 1e-4)

    @property
    def temperature(self) -> Tensor:
        return self.log_temperature.detach().exp()

    def update(
        self, features: Tensor, act: Tensor, score: Score, generator: Generator
    ) -> dict[str, Tensor]:
        """One step of policy, temperature and (if adaptive) beta.

        Args:
            features: (B, F), without gradient.
            act: (B, H, A) of the buffer.
            score: (B, K, H, A) -> (E, B, K), the value; differentiable in the action.
            generator: draws the edits.
        """
        edited, move, log_prob = self.policy(features, act[:, None], generator)
        q = score(edited)  # (E, B, 1)
        loss = (self.temperature * log_prob[:, 0] - q.mean(0)[:, 0]).mean()
        grads = torch.autograd.grad(loss, self.params)
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad
        self.optimizer.step()

        entropy = -log_prob.detach().mean()
        if self.entropy_of == "released":
            entropy = entropy + self.policy.dim * self.policy.log_scale
        gap = entropy - self.target_entropy
        self.log_temperature.grad = self.log_temperature.detach().exp() * gap
        self.temperature_optimizer.step()

        if self.scale_lr is not None:
            moved = act[:, None] + self.beta * move.detach()
            worst = score(moved.clamp(-1, 1) if self.policy.clip else moved).amin(0).mean()
            (self.beta.grad,) = torch.autograd.grad(-worst, [self.beta])
            self.scale_optimizer.step()
            with torch.no_grad():
                self.beta.clamp_(*self.SCALE)
                self.policy.log_scale.copy_(self.beta.log())
        return {
            "edit/loss": loss.detach(),
            "edit/q": q.detach().mean(),
            "edit/entropy": entropy,
            "edit/temperature": self.temperature,
            "edit/scale": self.policy.scale.detach(),
            "edit/size": (self.policy.scale * move).detach().abs().mean(),
        }

    def absorb(self, change: Change) -> None:
        """See `offline.learning.agent.OnEncoding`; the encoding comes first, then the action."""
        self.policy.move.absorb(change)

    def networks(self) -> list[nn.Module]:
        """The policy."""
        return [self.policy]

    def state_dict(self) -> dict[str, Any]:
        """Policy, temperature, beta and the optimisers."""
        return {
            "policy": self.policy.state_dict(),
            "log_temperature": self.log_temperature.detach().clone(),
            "beta": self.beta.detach().clone(),
            "optimizers": [o.state_dict() for o in self._optimizers()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned."""
        self.policy.load_state_dict(state["policy"])
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
            self.beta.copy_(state["beta"])
        for optimizer, saved in zip(self._optimizers(), state["optimizers"], strict=True):
            load_optimizer(optimizer, saved)

    def _optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        return self.optimizer, self.temperature_optimizer, self.scale_optimizer


class Editor:
    """Edits of proposals, from the critic's encoding of the same observations.

    Args:
        policy: of the edits.
        n: edits of each proposal.
    """

    def __init__(self, policy: EditPolicy, n: int) -> None:
        self.policy, self.n = policy, n

    def __call__(self, features: Encoded, act: Tensor, generator: Generator | None) -> Edits:
        """(B, N, H, A) -> (B, N n, H, A) and log pi of the moves (B, N n)."""
        edited, _, log_prob = self.policy(features.state, act, generator, self.n)
        return Edits(edited, log_prob)
