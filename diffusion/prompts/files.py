"""A file of prompts, by what its name ends in: text, JSON lines, a JSON list, CSV or TSV.

What gzip packed is unpacked once, into a temporary file that has no name.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
import weakref
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, Protocol

from diffusion.errors import InputError, shown
from diffusion.prompts.columns import Columns
from diffusion.prompts.json_list import json_list
from diffusion.prompts.lines import Lines, Parser, json_lines, plain, table

FORMATS = ".txt, .jsonl, .json, .csv, .tsv or .parquet"
# A packed file may hold this many bytes, or so many times its own; real text packs 3 to 10 times.
_SMALL, _RATIO = 2**26, 100


class PromptFile(Protocol):
    """Prompts on disk. `digest` (hex SHA-256 of the bytes) is there once `scan` has ended."""

    digest: str
    columns: Columns

    def scan(self, whole: bool = False) -> Iterator[tuple[int, str]]:
        """Place and prompt of each record, in order, blank ones skipped; at least one.

        Only with `whole` do they carry their metadata for sure.
        """

    def read(self, places: Iterable[int]) -> list[str]:
        """The prompts at `places`, which a scan gave; refuses a file that changed since."""


class LineFile:
    """A file that is read record by record; the place of a record is its byte offset."""

    def __init__(self, path: str, spec: str, columns: Columns) -> None:
        self.path, self.spec, self.columns = path, spec, columns
        self.digest = ""
        self.stamp = (-1, -1)  # size and modification time at which the digest was right
        self._unpacked: BinaryIO | None = None
        if not os.path.isfile(path):
            raise InputError(f"{spec} is not a regular file: save the prompts in one ({FORMATS}).")
        stem, suffix = os.path.splitext(path)
        self.packed = suffix.lower() == ".gz"
        suffix = (os.path.splitext(stem)[1] if self.packed else suffix).lower()
        self.parser: Parser
        if suffix in (".csv", ".tsv"):
            self.parser = partial(table, columns, "," if suffix == ".csv" else "\t")
        elif suffix in (".jsonl", ".ndjson"):
            self.parser = partial(json_lines, columns)
        elif suffix == ".json":
            self.parser = partial(json_list, columns)
        elif suffix in (".txt", ".text", ""):
            self.parser = plain
        elif suffix == ".parquet":
            raise InputError(f"{spec}: parquet is packed inside already: unpack it with gunzip.")
        else:
            raise InputError(
                f'{spec}: prompts come as {FORMATS}, not as "{shown(suffix)}": convert it.'
            )

    def scan(self, whole: bool = False) -> Iterator[tuple[int, str]]:
        empty = True
        with self._open() as lines:
            stamp = stamp_of(lines.file)
            records = self.parser(lines)()
            while True:
                offset = lines.offset  # these parsers read no line ahead
                text = next(records, None)
                if text is None:
                    break
                if text:
                    empty = False
                    yield offset if lines.began is None else lines.began, text
            self.digest, self.stamp = lines.sha.hexdigest(), stamp
        if empty:
            raise InputError(f"{self.spec} holds no prompts: put one on each line.")

    def read(self, places: Iterable[int]) -> list[str]:
        with self._open() as lines:
            stamp = stamp_of(lines.file)
            if stamp != self.stamp:
                file: Any = lines.file
                if hashlib.file_digest(file, "sha256").hexdigest() != self.digest:
                    raise changed(self.spec)
                self.stamp = stamp
                lines.seek(0)
            records = self.parser(lines)
            texts = []
            for offset in places:
                lines.seek(int(offset))
                texts.append(next(records()))
            return texts

    @contextmanager
    def _open(self) -> Iterator[Lines]:
        with unreadable(self.spec):
            if self.packed:
                if self._unpacked is None:
                    self._unpacked = unpacked(self.path, self.spec)
                    weakref.finalize(self, self._unpacked.close)
                self._unpacked.seek(0)
                yield Lines(self._unpacked, self.spec)
            else:
                with open(self.path, "rb") as file:
                    yield Lines(file, self.spec)


def unpacked(path: str, spec: str) -> BinaryIO:
    """A temporary file of what is in a gzip file; it is gone once it is closed.

    Raises:
        InputError: it is torn, no gzip file, or unpacks to far more than text does.
    """
    most = max(_SMALL, _RATIO * os.path.getsize(path))
    out = tempfile.TemporaryFile()
    try:
        with gzip.open(path, "rb") as packed:
            while chunk := _next_chunk(packed, spec):
                if out.tell() + len(chunk) > most:
                    raise InputError(
                        f"{spec} unpacks to more than {_RATIO} times its size, which no text does: "
                        "if it is right, unpack it with gunzip first."
                    )
                try:
                    out.write(chunk)
                except OSError as error:
                    raise InputError(
                        f"{spec} cannot be unpacked into {tempfile.gettempdir()} "
                        f"({error.strerror or error}): free some space there, or set TMPDIR."
                    ) from error
    except BaseException:
        out.close()
        raise
    return out


def _next_chunk(packed: gzip.GzipFile, spec: str) -> bytes:
    try:
        return packed.read(2**20)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{spec} is no whole gzip file ({shown(error)}): copy it again, or rename it if it is "
            "not packed."
        ) from error


@contextmanager
def unreadable(spec: str) -> Iterator[None]:
    """Turn what the disk says into one line."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{spec} cannot be read ({why}): is it there for you?") from error


def changed(spec: str) -> InputError:
    """What is said of a file that is not as it was scanned."""
    return InputError(f"{spec} was changed while in use: restore it, or start a new run.")


def stamp_of(file: BinaryIO) -> tuple[int, int]:
    """Size and modification time; a file in which neither changed has not changed."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
