"""The file of labels while somebody writes it: whole after every label."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from offline.data.episodes import Episodes
from offline.files import disk_errors, write_beside
from robots.datasets.labels import LABELS, Label, labels_text, read_labels


class Sheet:
    """A file of labels; any number of threads and processes may change it.

    Each change reads the file again, so that what another process or an editor wrote stays.

    Args:
        path: of the CSV; it need not exist.

    Raises:
        InputError: the file holds something else than labels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self.read()

    def read(self) -> dict[int, Label]:
        """Every label now, by the dataset's episode index. Raises InputError as `read_labels`."""
        return read_labels(self.path) if self.path.exists() else {}

    def put(self, episode: int, label: Label | None) -> bool:
        """Write the label of one episode; None removes it.

        Args:
            episode: the dataset's own index.
            label: what is said of it.

        Returns:
            Whether the file was changed.

        Raises:
            InputError: the file was spoilt meanwhile, or the disk refuses.
        """
        with self._lock, self._alone():
            labels = self.read()
            if labels.get(episode) == label:
                return False
            if label is None:
                del labels[episode]
            else:
                labels[episode] = label
            self._write(labels)
            return True

    def put_new(self, labels: Mapping[int, Label]) -> int:
        """Write the labels of episodes that have none; returns how many these are."""
        with self._lock, self._alone():
            there = self.read()
            new = {index: label for index, label in labels.items() if index not in there}
            if new:
                self._write(there | new)
            return len(new)

    def _write(self, labels: Mapping[int, Label]) -> None:
        with disk_errors(f'cannot write "{self.path}"', "Free some space, or pass --labels"):
            write_beside(self.path, labels_text(labels).encode())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process changes the file meanwhile; the lock ends with its process."""
        with disk_errors(f'cannot write beside "{self.path}"', "Pass --labels in another folder"):
            folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def sheet_of(episodes: Episodes, data: str) -> Path:
    """Where the labels of a dataset belong: labels.csv in its folder, or a file beside its file."""
    where = Path(str(episodes.meta.get("path") or data)).expanduser()
    return where / LABELS if where.is_dir() else where.with_suffix(f".{LABELS}")
