"""Episodes: what every dataset format is read into, one episode at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from offline.errors import InputError
from offline.spec import ActionSpec


@dataclass(frozen=True)
class Episode:
    """One episode of T steps, in the environment's units."""

    obs: dict[str, np.ndarray]
    """Each (T + 1, ...): before every action, after the last. Images uint8 (height, width, 3)."""
    actions: np.ndarray
    """(T, A) float32."""
    rewards: np.ndarray
    """(T,) float32, the environment's own."""
    terminated: bool
    """The last step truly ended the task; a time limit does not."""
    success: bool | None = None
    """Whether the task was achieved; None where the dataset does not say."""
    language: str | None = None
    """The instruction."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Whatever else the dataset stores of the episode, such as "operator" or "seed"."""

    def __len__(self) -> int:
        return len(self.actions)

    def check(self, name: str) -> None:
        """Check lengths and numbers.

        Raises:
            InputError: names the episode and what is wrong with it.
        """
        steps = len(self.actions)
        if steps == 0:
            raise InputError(f"{name} has no steps")
        if len(self.rewards) != steps:
            raise InputError(f"{name} has {steps} actions but {len(self.rewards)} rewards")
        for key, values in self.obs.items():
            if len(values) != steps + 1:
                raise InputError(
                    f'{name}: "{key}" has {len(values)} observations for {steps} actions; '
                    f"expected {steps + 1} (one more than actions): was the file cut off?"
                )
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise InputError(f'{name}: "{key}" has NaN or infinite values')
        if not np.isfinite(self.actions).all():
            raise InputError(f"{name}: the actions have NaN or infinite values")


class Episodes(Protocol):
    """A dataset: indexable, lazy (an episode is read when it is asked for)."""

    lengths: np.ndarray
    """(episodes,) steps of each."""
    obs_shapes: dict[str, tuple[int, ...]]
    """Of one observation, per key."""
    env: str | None
    """The environment's name, such as "metaworld/push-v3", where known."""
    meta: dict[str, Any]
    """Whatever else the dataset says of itself ("env_args", "format", "path")."""
    splits: dict[str, np.ndarray]
    """Episode indices by name, such as "train" and "valid"; may be empty."""

    @property
    def spec(self) -> ActionSpec:
        """The actions' statistics and conventions."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Episode: ...
