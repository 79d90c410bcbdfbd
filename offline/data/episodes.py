"""Episodes: what every dataset format is read into, one episode at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from offline.arrays import check_array, check_shape
from offline.errors import InputError, shown
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
    observed: np.ndarray | None = None
    """(T + 1,) bool: which observations were made. The others repeat the one before, and no
    transition starts or ends there. Default: all of them."""

    def __len__(self) -> int:
        return len(self.actions)

    def check(self, name: str) -> None:
        """Check lengths and numbers.

        Raises:
            InputError: names the episode and what is wrong with it.
        """
        actions = check_array(self.actions, name, "actions", shape=(None, None))
        steps = len(actions)
        if steps == 0:
            raise InputError(f"{name} has no steps")
        rewards = check_array(self.rewards, name, "rewards")
        if len(rewards) != steps:
            raise InputError(f"{name} has {steps} actions but {len(rewards)} rewards")
        check_shape(rewards.shape, name, "rewards", (steps,))
        if self.observed is not None:
            check_shape(self.observed.shape, name, "observed", (steps + 1,))
        if not isinstance(self.obs, dict):
            raise InputError(f"{name}: the observations should be a dict of arrays by name")
        for key, values in self.obs.items():
            check_array(values, name, key)
            if values.ndim == 0 or len(values) != steps + 1:
                raise InputError(
                    f'{name}: "{shown(key)}" has {len(values) if values.ndim else 0} observations '
                    f"for {steps} actions; expected {steps + 1} (one more than actions): was the "
                    "file cut off?"
                )

    def require_like(self, name: str, obs_shapes: Mapping[str, tuple[int, ...]], dim: int) -> None:
        """Check that the episode fits its dataset.

        Args:
            name: what errors call the episode.
            obs_shapes: of one observation, for each key that is needed.
            dim: A of its actions.

        Raises:
            InputError: an observation that is missing or of another shape, or other actions.
        """
        check_shape(self.actions.shape, name, "actions", (None, dim))
        for key, shape in obs_shapes.items():
            if key not in self.obs:
                raise InputError(f'{name} has no observation "{shown(key)}"')
            check_shape(self.obs[key].shape, name, key, (None, *shape))
            if len(shape) == 3 and (self.obs[key].dtype != np.uint8 or shape[2] != 3):
                raise InputError(
                    f'{name}: the image "{shown(key)}" holds {self.obs[key].dtype} '
                    f"{tuple(shape)}, expected bytes from 0 to 255 (uint8), (height, width, 3)"
                )


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
