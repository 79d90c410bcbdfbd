"""`TDCritic`: a critic learning online by temporal differences, shared by every agent.

Each head minimises (Q_e(s, a) - y)^2 / 2 towards one target

    y = R + discount * v(s'),

v being what the agent makes of the next state with the target critic, usually the minimum over a
few heads drawn at random (REDQ, arXiv 2101.05982; RLPD, arXiv 2302.02948). `discount` is gamma^H,
and 0 only where the episode truly ended.

Shape legend: E heads, B batch, K candidates, H action chunk, A action dimension.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from offline.critics.losses import td_loss, track
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.types import Obs

Penalty = Callable[[ValueFunction, Batch, Generator], tuple[Tensor, dict[str, Tensor]]]


def td_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """R + discount * v(s'): (B,), without gradient."""
    return (reward + discount * next_value).detach()


class Subset:
    """Some heads of a value function as a `Critic`: `count` of them, drawn afresh by `encode`.

    Args:
        value: whose heads; its weights are followed.
        count: how many; all of them when it is the ensemble's size.
        generator: draws them; kept by the caller, who saves its state.
    """

    def __init__(self, value: ValueFunction, count: int, generator: Generator) -> None:
        self.value, self.count, self.generator = value, count, generator
        self.spec = value.spec
        self.heads: Tensor | None = None
        """(count,) indices of the latest draw; None for all."""
        self.encoded: Tensor | None = None
        """(B, encoder.dim) of the latest `encode`, before the heads."""
        self.shared = False
        """Whether somebody else calls `observe` for each `encode`: images are encoded once."""
        self._pending: Obs | None = None

    def encode(self, obs: Obs) -> Tensor:
        """(B, F): the state's part of freshly drawn heads."""
        self.heads = draw_heads(self.value.ensemble, self.count, self.generator)
        self.encoded = self.observe(obs)
        return self.value.heads.project(self.encoded, self.heads)

    def observe(self, obs: Obs) -> Tensor:
        """(B, encoder.dim) of the observation alone; where it is `shared`, the second of two calls
        with the same object gets what the first one computed."""
        if self._pending is obs and self.encoded is not None:
            self._pending = None
            return self.encoded
        self.encoded = self.value.encoder(obs)
        self._pending = obs if self.shared else None
        return self.encoded

    def score(self, features: Tensor, act: Tensor) -> Tensor:
        """(B, F) and (B, K, H, A) -> (count, B, K)."""
        return self.value.score(features, act, self.heads)

    def second_opinion(self, act: Tensor, heads: Tensor | None) -> Tensor:
        """Score with other heads what was encoded last: (B, K, H, A) -> (count, B, K)."""
        assert self.encoded is not None, "encode() comes first"
        return self.value.score(self.value.heads.project(self.encoded, heads), act, heads)

    def others(self, count: int, *, disjoint: bool) -> Tensor | None:
        """Heads for a second opinion on what the latest ones chose.

        Args:
            count: how many.
            disjoint: none of the latest ones, as far as there are others.
        """
        ensemble = self.value.ensemble
        if not disjoint or self.heads is None or len(self.heads) >= ensemble:
            return draw_heads(ensemble, count, self.generator)
        latest = set(self.heads.tolist())
        rest = torch.tensor([e for e in range(ensemble) if e not in latest])
        return rest[draw_heads(len(rest), count, self.generator, whole=True)]

    def __call__(self, obs: Obs, act: Tensor) -> Tensor:
        return self.score(self.encode(obs), act)


def draw_heads(
    ensemble: int, count: int, generator: Generator, *, whole: bool = False
) -> Tensor | None:
    """(count,) distinct heads; None (or, if `whole`, their indices) when that is all of them."""
    if count >= ensemble:
        return torch.arange(ensemble) if whole else None
    return torch.randperm(ensemble, generator=generator)[:count]


class TDCritic:
    """A value function, its target, and their update.

    Args:
        value: the critic to train, in training mode.
        lr: of Adam.
        target_rate: the target's step towards the critic after every update.
        penalty: added to the loss, with metrics of its own: (critic, batch, generator) -> scalar;
            see `offline.critics.penalties`.
    """

    def __init__(
        self,
        value: ValueFunction,
        *,
        lr: float,
        target_rate: float,
        penalty: Penalty | None = None,
    ) -> None:
        self.value = value
        self.target = copy.deepcopy(value).requires_grad_(False).eval()
        self.target_rate, self.penalty = target_rate, penalty
        self.params = list(value.parameters())
        self.optimizer = torch.optim.Adam(self.params, lr=lr, fused=True)

    def update(self, batch: Batch, next_value: Tensor, generator: Generator) -> dict[str, Tensor]:
        """One step towards R + discount * next_value, (B,), and of the target.

        Returns:
            critic/td_loss, critic/q_data (mean over heads and batch), critic/q_std (over heads),
            critic/target
        """
        y = td_target(batch.reward, batch.discount, next_value)
        q = self.value(batch.obs, batch.act[:, None])[..., 0]  # (E, B)
        td = td_loss(q, y)
        loss = td.mean(1).sum()
        metrics: dict[str, Tensor] = {}
        if self.penalty is not None:
            extra, metrics = self.penalty(self.value, batch, generator)
            loss = loss + extra
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.value.tighten()  # before the target, which stays within the bound as an average
        track(self.target, self.value, self.target_rate)
        with torch.no_grad():
            return metrics | {
                "critic/td_loss": td.mean(),
                "critic/q_data": q.mean(),
                "critic/q_std": q.std(0, correction=0).mean(),
                "critic/target": y.mean(),
            }

    def state_dict(self) -> dict[str, Any]:
        """Critic, target and optimiser."""
        return {
            "value": self.value.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned."""
        self.value.load_state_dict(state["value"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
