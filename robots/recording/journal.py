"""A journal: records appended to a file, of which a crash can tear off the last one only.

Each record is its length, its CRC-32 (4 bytes each, little-endian) and a message in openpi's
format (`robots/serving/wire.py`). What was written survives the death of the process at once, and
that of the machine once it is synced, which is due once a second.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from robots.serving.wire import WireError, pack, unpack_map

HEAD = struct.Struct("<II")
SYNC_EVERY = 1.0  # seconds
LARGEST = 1 << 30  # bytes of a record


class Journal:
    """An open journal; not for two threads at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        self._synced = monotonic()

    def append(self, *messages: dict[str, Any]) -> None:
        """Write records; a torn write is taken back, so that what follows can be read.

        Raises:
            OSError: the disk refuses.
            WireError: a message that cannot be written.
        """
        frames = [pack(message) for message in messages]
        whole = b"".join(HEAD.pack(len(f), zlib.crc32(f)) + f for f in frames)
        try:
            rest = memoryview(whole)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self.size)
            self._file.seek(self.size)
            raise
        self.size += len(whole)

    def sync_if_due(self) -> None:
        """Sync, if that is a second ago."""
        if monotonic() - self._synced > SYNC_EVERY:
            self.sync()

    def sync(self) -> None:
        """What was written survives the death of the machine."""
        os.fdatasync(self._file.fileno())
        self._synced = monotonic()

    def close(self) -> None:
        """Sync and close it."""
        try:
            self.sync()
        finally:
            self._file.close()


def read_journal(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records up to the first that is torn or damaged, each with its place in the file."""
    with open(path, "rb") as file:
        while True:
            place = file.tell()
            found = _read(file)
            if found is None:
                return
            yield place, found


def read_at(path: Path, place: int) -> dict[str, Any] | None:
    """The record at a place that `read_journal` gave; None where it is damaged."""
    with open(path, "rb") as file:
        file.seek(place)
        return _read(file)


def _read(file: Any) -> dict[str, Any] | None:
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    length, check = HEAD.unpack(head)
    if length > LARGEST:
        return None
    frame = file.read(length)
    if len(frame) < length or zlib.crc32(frame) != check:
        return None
    try:
        return unpack_map(frame, max_bytes=LARGEST)
    except WireError:
        return None
