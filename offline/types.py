"""The types that datasets, policies, critics and environments share.

Shape legend: B batch, K candidates, H action chunk, A action dimension, E critic ensemble.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Generator, Tensor

from offline.spec import ActionSpec

# Each (B, ...), in the environment's own units. One-dimensional entries are floats (B, D); images
# are uint8 (B, height, width, 3); "language" is a sentence embedding (B, D).
Obs = dict[str, Tensor]


@runtime_checkable
class Policy(Protocol):
    """Anything that proposes actions: ours, a robomimic checkpoint, a server.

    `sample` proposes from the present state and changes nothing but its own scratch; `commit`
    advances the state (history, hidden state), once per decision. Rows of the batch are episodes
    that run side by side.
    """

    spec: ActionSpec
    """How its normalised actions map to the environment's units."""

    def reset(self) -> None:
        """New episodes in every row: history and hidden state are forgotten."""

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """Propose n chunks for each row: (B, n, H, A), normalised by `spec`."""

    def commit(self, act: Tensor) -> None:
        """Tell the policy what is being executed: (B, H', A), H' <= H, normalised by `spec`."""

    def keep(self, rows: Tensor) -> None:
        """Only these rows of the batch go on: (R,) integer indices in the present batch."""


@runtime_checkable
class HasMode(Protocol):
    """A policy that can decode its most likely (or a low-noise) action."""

    def mode(self, obs: Obs, generator: Generator | None) -> Tensor:
        """One chunk for each row: (B, H, A), normalised by `spec`."""


@runtime_checkable
class HasGenerators(Protocol):
    """A policy with random streams of its own, beside the one that `sample` is handed."""

    def generators(self) -> list[Generator]:
        """All of them. An evaluation in the midst of training puts them back as they were."""


def clips(policy: object) -> bool:
    """Whether a policy's actions are clipped to its spec's bounds before they are executed. All
    are, but for one whose attribute `clips` is False: it is executed as it decided."""
    return getattr(policy, "clips", True)


def executed(policy: Policy, act: Tensor) -> Tensor:
    """What an environment is handed of actions (..., A), normalised by the policy's spec: float32
    on the CPU, in the environment's units."""
    raw = policy.spec.unnormalize(act.detach().float().cpu())
    return policy.spec.clip(raw) if clips(policy) else raw


class OnDevice(Protocol):
    """A tensor, or tensors that lie on one device."""

    @property
    def device(self) -> torch.device: ...


Features = TypeVar("Features", bound=OnDevice)


@runtime_checkable
class Critic(Protocol[Features]):
    """A value function over action chunks: higher is better.

    `encode` is paid once per observation, `score` once per candidate; calling does both. What
    `encode` returns is handed to `score` as it is: mostly a tensor (B, F).
    """

    spec: ActionSpec

    def encode(self, obs: Obs) -> Features:
        """Features of each of B observations."""

    def score(self, features: Features, act: Tensor) -> Tensor:
        """Features of B observations and (B, K, H, A), normalised by `spec` -> (E, B, K)."""

    def __call__(self, obs: Obs, act: Tensor) -> Tensor:
        """(B, K, H, A), normalised by `spec` -> (E, B, K)."""
