"""`Labelled`: a dataset of whose episodes somebody has said which succeeded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from offline.data.episodes import Episode, Episodes
from offline.errors import InputError
from offline.spec import ActionSpec

Judge = Callable[[Episode, int], bool]


class Labelled:
    """Some episodes of a dataset, with another word on whether each succeeded.

    A success truly ended its episode. An episode that the dataset calls a success and the label a
    failure did not end, it was cut off.

    Args:
        source: the dataset.
        judge: (episode, its position in `source`) -> whether it succeeded.
        rows: positions in `source` of the episodes that are kept; all when None.
        ends: steps after which an episode ends, by its position in `source`.

    Attributes:
        source, rows: as given.

    Raises:
        InputError: no episode is kept.
    """

    def __init__(
        self,
        source: Episodes,
        judge: Judge,
        *,
        rows: Sequence[int] | None = None,
        ends: Mapping[int, int] | None = None,
    ) -> None:
        self.source, self._judge, self._ends = source, judge, dict(ends or {})
        self.rows = np.arange(len(source)) if rows is None else np.asarray(rows, np.int64)
        if not len(self.rows):
            raise InputError("the labels leave out every episode: label some as 1 or 0")
        lengths = np.array(source.lengths)
        for position, steps in self._ends.items():
            lengths[position] = min(steps, lengths[position])
        self.lengths = lengths[self.rows]
        self.obs_shapes, self.env = source.obs_shapes, source.env
        # The content's hash counts what the file says of success.
        self.meta = {key: entry for key, entry in source.meta.items() if key != "content_hash"}
        place = {int(position): row for row, position in enumerate(self.rows)}
        self.splits = {
            name: np.array([place[int(p)] for p in indices if int(p) in place], np.int64)
            for name, indices in source.splits.items()
        }

    @property
    def spec(self) -> ActionSpec:
        """Of all of the dataset's actions."""
        return self.source.spec

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Episode:
        """Read one episode.

        Raises:
            InputError: as the dataset does, or the judge fails.
        """
        position = int(self.rows[index])
        episode = self.source[position]
        success = self._judge(episode, position)
        steps = min(self._ends.get(position, len(episode)), len(episode))
        by_hand = episode.meta.get("intervention")  # of each step of a recording
        cut = {"intervention": by_hand[:steps]} if isinstance(by_hand, list) else {}
        return replace(
            episode,
            meta={**episode.meta, **cut},
            observed=None if episode.observed is None else episode.observed[: steps + 1],
            obs={key: values[: steps + 1] for key, values in episode.obs.items()},
            actions=episode.actions[:steps],
            rewards=episode.rewards[:steps],
            terminated=success or (episode.terminated and not episode.success),
            success=success,
        )

    def __getattr__(self, name: str) -> Any:
        """What else the dataset offers of an episode, such as the decisions of a recording."""
        if name not in ("decisions", "facts"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        said = getattr(self.source, name)
        return lambda index: said(int(self.rows[index]))
