"""What a recording holds, without its frames: read again and again while it grows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as parquet

from genpol.improving.seen import Seen
from offline.documents import read_document
from offline.errors import InputError
from robots.datasets.labels import LABELS, read_labels
from robots.datasets.recorded import FOLDER, Facts

_SAMPLED = 50  # episodes by which the executed length is judged


class Scan:
    """The finished episodes of a recording, in order; files that were read are not read again.

    Args:
        folder: of the recording, there or not.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, Seen] = {}
        self._executed: Counter[int] = Counter()
        self.damaged: set[Path] = set()
        """Files that could not be read; they are left out."""

    def __call__(self) -> list[Seen]:
        """The episodes, with the labels of labels.csv over what the robot said.

        Raises:
            InputError: labels.csv cannot be read.
        """
        for path in sorted(self._folder.glob("genpol/decisions/chunk-*/file-*.parquet")):
            if path not in self._known and path not in self.damaged:
                try:
                    self._known[path] = self._read(path)
                except (InputError, OSError, ValueError):
                    self.damaged.add(path)
        seen = sorted(self._known.values(), key=lambda episode: episode.index)
        labels = self._folder / LABELS
        if not labels.is_file():
            return seen
        said = read_labels(labels)
        return [
            replace(episode, success=said[episode.index].success)
            if episode.index in said
            else episode
            for episode in seen
        ]

    @property
    def executed(self) -> int | None:
        """Actions that the robot mostly executed of an answer; None before it did."""
        return self._executed.most_common(1)[0][0] if self._executed else None

    def _read(self, path: Path) -> Seen:
        with parquet.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            table = file.read(columns=["steps", "source"])
        facts = read_document(metadata.get(FOLDER.encode(), b"{}"), Facts, f'"{path}"')
        steps = table["steps"].to_pylist()
        if len(self._known) < _SAMPLED:  # all but the last: an episode may end in a chunk
            self._executed.update(n for n in steps[:-1] if n > 0)
        return Seen(
            index=facts.episode_index,
            success=facts.success,
            version=facts.versions[-1] if facts.versions else "",
            steps=sum(steps),
            by_hand=facts.interventions,
            dropped=facts.dropped,
            ended=facts.ended,
        )
