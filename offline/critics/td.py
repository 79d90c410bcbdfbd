"""Temporal differences: what every critic learns by, and `TDCritic`, which every agent shares.

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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from offline.critics.critic_config import CriticConfig
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.networks.normalizer import Change, ObsStats
from offline.networks.optimizers import load_optimizer
from offline.types import Obs

Penalty = Callable[[ValueFunction, Batch, Generator], tuple[Tensor, dict[str, Tensor]]]


def td_target(reward_B: Tensor, discount_B: Tensor, next_value_B: Tensor) -> Tensor:
    """y = R + discount * v(s'): (B,), without gradient; what v is, is the method's."""
    return (reward_B + discount_B * next_value_B).detach()


def td_loss(q_EB: Tensor, target_B: Tensor) -> Tensor:
    """(Q - y)^2 / 2: (E, B); no gradient to the target."""
    return 0.5 * (q_EB - target_B.detach()) ** 2


@torch.no_grad()
def track(target: torch.nn.Module, source: torch.nn.Module, rate: float) -> None:
    """target <- target + rate * (source - target)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)


def target_of(critic: ValueFunction) -> ValueFunction:
    """The target critic: a copy that no gradient reaches, and that `follow` moves."""
    return copy.deepcopy(critic).requires_grad_(False)


def follow(target: ValueFunction, critic: ValueFunction, rate: float) -> None:
    """After a gradient step: bring the critic back within its bound, then `track` it."""
    critic.tighten()  # before the target, which stays within the bound as an average
    track(target, critic, rate)


def td_metrics(td_EB: Tensor, q_EB: Tensor, target_B: Tensor) -> dict[str, Tensor]:
    """What every critic logs: means of the TD loss, of Q at the data's actions, and of y."""
    return {
        "critic/td_loss": td_EB.detach().mean(),
        "critic/q_data": q_EB.detach().mean(),
        "critic/target": target_B.mean(),
    }


@dataclass(frozen=True)
class Encoded:
    """What a few heads make of B observations: all that scoring candidates needs."""

    state: Tensor
    """(B, S) from the encoder, before any head; what edits and actors see."""
    projected: Tensor
    """(B, F): `state` through the first layer of the heads."""
    heads: Tensor | None
    """(C,) which heads; None is all of them."""

    @property
    def device(self) -> torch.device:
        return self.projected.device


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

    def encode(self, obs: Obs) -> Encoded:
        """Draw heads, and encode B observations for them."""
        heads = draw_heads(self.value.ensemble, self.count, self.generator)
        state = self.value.encoder(obs)
        return Encoded(state, self.value.heads.project(state, heads), heads)

    def score(self, features: Encoded, act: Tensor) -> Tensor:
        """Features of B observations and (B, K, H, A) -> (count, B, K)."""
        return self.value.score(features.projected, act, features.heads)

    def second_opinion(self, features: Encoded, act: Tensor, *, disjoint: bool) -> Tensor:
        """Score with another draw of heads: (B, K, H, A) -> (C, B, K), C at most `count`.

        Args:
            features: by the heads that had the first opinion.
            act: what they chose.
            disjoint: none of these heads again, as far as there are others.
        """
        heads = self._others(features.heads, disjoint)
        return self.value.score(self.value.heads.project(features.state, heads), act, heads)

    def _others(self, first: Tensor | None, disjoint: bool) -> Tensor | None:
        ensemble = self.value.ensemble
        if not disjoint or first is None or len(first) >= ensemble:
            return draw_heads(ensemble, self.count, self.generator)
        taken = set(first.tolist())
        rest = torch.tensor([e for e in range(ensemble) if e not in taken])
        return rest[draw_heads(len(rest), self.count, self.generator, whole=True)]

    def __call__(self, obs: Obs, act: Tensor) -> Tensor:
        """(B, K, H, A) -> (count, B, K)."""
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
        self.target = target_of(value).eval()
        self.target_rate, self.penalty = target_rate, penalty
        self.params = list(value.parameters())
        self.optimizer = torch.optim.Adam(self.params, lr=lr, fused=True)

    @classmethod
    def of(
        cls, value: ValueFunction, config: CriticConfig, penalty: Penalty | None = None
    ) -> TDCritic:
        """With the rates of a configuration."""
        return cls(value, lr=config.lr, target_rate=config.target_rate, penalty=penalty)

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
        follow(self.target, self.value, self.target_rate)
        spread = q.detach().std(0, correction=0).mean()
        return metrics | td_metrics(td, q, y) | {"critic/q_std": spread}

    def restandardise(self, stats: ObsStats) -> Change:
        """Of critic and target; see `ValueFunction.restandardise`."""
        self.target.restandardise(stats)
        return self.value.restandardise(stats)

    def networks(self) -> list[nn.Module]:
        """Critic and target."""
        return [self.value, self.target]

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
        load_optimizer(self.optimizer, state["optimizer"])
