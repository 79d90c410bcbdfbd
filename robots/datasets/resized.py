"""`Resized`: a dataset whose pictures are read at another size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from offline.data.episodes import Episode, Episodes
from offline.pictures import resize
from offline.spec import ActionSpec


class Resized:
    """A dataset with every picture resized to a square.

    Args:
        source: the dataset.
        size: height and width.
    """

    def __init__(self, source: Episodes, size: int) -> None:
        self.source, self._size = source, size
        self.obs_shapes = {
            key: (size, size, 3) if len(shape) == 3 else tuple(shape)
            for key, shape in source.obs_shapes.items()
        }
        self.lengths, self.env, self.splits = source.lengths, source.env, source.splits
        # The content's hash counts the pictures as they are stored.
        self.meta = {key: entry for key, entry in source.meta.items() if key != "content_hash"}

    @property
    def spec(self) -> ActionSpec:
        """The dataset's."""
        return self.source.spec

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Episode:
        """Read one episode; raises as the dataset does."""
        episode = self.source[index]
        size = self._size, self._size
        return replace(
            episode,
            obs={
                key: np.stack([resize(one, size) for one in values]) if values.ndim == 4 else values
                for key, values in episode.obs.items()
            },
        )

    def __getattr__(self, name: str) -> Any:
        """What else the dataset says of its episodes."""
        if name not in ("decisions", "facts", "episode_indices", "success_of"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        return getattr(self.source, name)
