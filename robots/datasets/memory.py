"""`EpisodeList`: episodes that are in memory as a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from offline.data.episodes import Episode
from offline.errors import InputError, shown
from offline.spec import ActionSpec
from robots.datasets.statistics import ActionStatistics, spec_from_actions


class EpisodeList:
    """A sequence of `Episode` as `Episodes`.

    Args:
        episodes: at least one; all observe the same.
        spec: bounds and conventions of the actions; the statistics are those of the episodes.
            Without, bounds are [-1, 1] where all actions lie within, else what the actions span.
        env: name of the environment that they were recorded in, such as "metaworld/push-v3".
        splits: indices by name, such as "train" and "valid".
        meta: whatever else is known of the dataset.

    Raises:
        InputError: no episodes, or one that is faulty or observes something else.
    """

    def __init__(
        self,
        episodes: Iterable[Episode],
        *,
        spec: ActionSpec | None = None,
        env: str | None = None,
        splits: Mapping[str, Iterable[int]] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self._episodes = list(episodes)
        if not self._episodes:
            raise InputError("a dataset has at least one episode, received none")
        self.obs_shapes = _shapes(self._episodes[0])
        dim = self._episodes[0].actions.shape[-1] if spec is None else spec.dim
        for i, episode in enumerate(self._episodes):
            episode.check(f"episode {i}")
            if (shapes := _shapes(episode)) != self.obs_shapes:
                raise InputError(
                    f"episode {i} observes {shown(str(shapes))}, the first "
                    f"{shown(str(self.obs_shapes))}"
                )
            if episode.actions.ndim != 2 or episode.actions.shape[1] != dim:
                raise InputError(
                    f"episode {i} has actions {episode.actions.shape}, expected (T, {dim})"
                )
        self.env = env
        self.meta: dict[str, Any] = {"format": "memory", **(meta or {})}
        self.splits = {name: np.array(list(rows), int) for name, rows in (splits or {}).items()}
        self.lengths = np.array([len(episode) for episode in self._episodes])
        actions = (episode.actions for episode in self._episodes)
        if spec is None:
            self.meta["spec_from"] = "data"
            self.spec = spec_from_actions(actions, "the dataset")
        else:
            statistics = ActionStatistics()
            for block in actions:
                statistics.add(block)
            self.spec = statistics.apply(spec)

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, index: int) -> Episode:
        return self._episodes[index]


def _shapes(episode: Episode) -> dict[str, tuple[int, ...]]:
    return {key: tuple(values.shape[1:]) for key, values in episode.obs.items()}
