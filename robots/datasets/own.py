"""Datasets that a reader of the user's own returns: checked where they enter."""

from __future__ import annotations

from typing import Any

import numpy as np

from offline.data.episodes import Episode, Episodes
from offline.documents import as_document
from offline.errors import InputError, shown
from offline.spec import ActionSpec
from robots.importing import one_line


class OwnEpisodes:
    """A dataset of the user's own, whose episodes are checked as they are read.

    Args:
        found: the dataset.
        reader: the function that it comes from, for errors.
    """

    def __init__(self, found: Episodes, reader: str) -> None:
        self._found, self._reader = found, reader
        self.lengths = np.asarray(found.lengths)
        self.obs_shapes = {key: tuple(shape) for key, shape in found.obs_shapes.items()}
        self.env = found.env
        self.meta = dict(getattr(found, "meta", None) or {})
        self.splits = {
            name: np.asarray(rows, np.int64)
            for name, rows in (getattr(found, "splits", None) or {}).items()
        }
        if hasattr(found, "decisions"):  # of a recording
            self.decisions = found.decisions

    @property
    def spec(self) -> ActionSpec:
        """The dataset's."""
        return self._found.spec

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int) -> Episode:
        """Read one episode.

        Raises:
            InputError: the reader fails, or returns something else than a sound `Episode`.
        """
        name = f"episode {index} of {self._reader}"
        try:
            episode = self._found[index]
        except (InputError, IndexError):  # the second ends a loop over the dataset
            raise
        except Exception as error:  # whatever the user's own code raises
            raise InputError(f"cannot read {name}: {one_line(error)}") from error
        if not isinstance(episode, Episode):
            raise InputError(f"{name} is a {type(episode).__name__}, expected an offline.Episode")
        episode.check(name)
        return episode


def check_description(found: Any, name: str) -> None:
    """Check what a dataset says of itself; no episode is read.

    Raises:
        InputError: lengths, shapes, splits or the spec are not what `Episodes` says.
    """
    lengths = np.asarray(found.lengths)
    count = len(found)
    if lengths.dtype.kind not in "iu" or lengths.shape != (count,) or (lengths < 0).any():
        raise InputError(
            f"{name} has the lengths {shown(found.lengths)}, expected one whole number for each "
            f"of its {count} episodes"
        )
    if not isinstance(found.spec, ActionSpec):
        raise InputError(f"{name} has the spec {shown(found.spec)}, expected an offline.ActionSpec")
    if not isinstance(found.env, str | None):
        raise InputError(f"{name} has the env {shown(found.env)}, expected a name or None")
    try:
        shapes = {str(key): [int(n) for n in shape] for key, shape in found.obs_shapes.items()}
        splits = {
            str(key): np.asarray(rows).tolist()
            for key, rows in (getattr(found, "splits", None) or {}).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{name} has obs_shapes or splits that are none: {one_line(error)}") from (
            error
        )
    as_document(shapes, dict[str, list[int]], f"{name}: obs_shapes")
    for key, rows in as_document(splits, dict[str, list[int]], f"{name}: splits").items():
        if any(not -count <= row < count for row in rows):
            raise InputError(f'{name}: split "{shown(key)}" names episodes that there are not')
