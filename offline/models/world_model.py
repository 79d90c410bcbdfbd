"""`WorldModel`: the interface of models of one environment step, and the tables they exchange.

Models see the one-dimensional observations, side by side in sorted order of their keys (as
`offline.networks.encoder.ObsEncoder` does), in the environment's units, and single actions.

Shape legend: N rows, D state dimensions, A action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Generator, Tensor

from offline.draws import moved
from offline.errors import InputError
from offline.types import Obs


@dataclass(frozen=True)
class StateLayout:
    """Which numbers of a flat state belong to which observation."""

    sizes: dict[str, int]
    """Length of each key's vector, in sorted order of the keys."""

    @classmethod
    def of(cls, obs_shapes: Mapping[str, tuple[int, ...]]) -> StateLayout:
        """Of an agent's observations.

        Raises:
            InputError: one of them is not a vector.
        """
        for key, shape in obs_shapes.items():
            if len(shape) != 1:
                raise InputError(
                    f'a world model predicts vectors, and observation "{key}" is {shape}: choose '
                    "others with --obs-keys, or drop --world-model"
                )
        return cls({key: obs_shapes[key][0] for key in sorted(obs_shapes)})

    @property
    def dim(self) -> int:
        """D."""
        return sum(self.sizes.values())

    def flat(self, obs: Obs) -> Tensor:
        """(N, D)."""
        return torch.cat([obs[key] for key in self.sizes], dim=-1)

    def split(self, state: Tensor) -> Obs:
        """(N, D) as an observation."""
        parts = state.split(list(self.sizes.values()), dim=-1)
        return dict(zip(self.sizes, parts, strict=True))


@dataclass(frozen=True)
class Steps:
    """N single environment steps."""

    state: Tensor
    """(N, D)."""
    act: Tensor
    """(N, A), normalised."""
    reward: Tensor
    """(N,) in the units that the agent learns in."""
    next_state: Tensor
    """(N, D)."""
    terminated: Tensor
    """(N,) 1 where the episode truly ended with this step, else 0."""

    def __len__(self) -> int:
        return len(self.state)

    def take(self, rows: Tensor) -> Steps:
        """Those of these rows (R,)."""
        return Steps(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def to(self, device: str | torch.device) -> Steps:
        """The same on another device."""
        return Steps(**{f.name: moved(getattr(self, f.name), device) for f in fields(self)})


@dataclass(frozen=True)
class Prediction:
    """What N imagined steps lead to."""

    next_state: Tensor
    """(N, D)."""
    reward: Tensor
    """(N,)."""
    terminated: Tensor
    """(N,) bool."""


class WorldModel(Protocol):
    """Predicts one environment step: learnt, or the simulator itself."""

    layout: StateLayout

    def predict(self, state: Tensor, act: Tensor, generator: Generator | None) -> Prediction:
        """One step from (N, D) with normalised actions (N, A), which lie in [-1, 1]."""
