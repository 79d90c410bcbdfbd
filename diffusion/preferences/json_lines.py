"""Pairs in JSON lines, whose images are files: read row by row, and again by byte offset.

A .gz is unpacked into a temporary file first, since offsets need one.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
import weakref
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from diffusion.errors import InputError, listed, shown
from diffusion.preferences.layouts import SAME, Layout, Skipped, layout_of
from diffusion.preferences.pair import Pair, source_of
from diffusion.prompts.prompt import Prompt

LONGEST_LINE = 2**20  # bytes


class JsonLines:
    """A .jsonl or .jsonl.gz of pairs.

    Attributes:
        layout: which columns are what; known once `scan` has ended.
        skipped: why rows were skipped -> how many.
        digest: hex SHA-256 of the unpacked bytes.
    """

    layout: Layout

    def __init__(self, spec: str, columns: str | None) -> None:
        self.path = os.path.abspath(os.path.expanduser(spec))
        self.folder, self.spec = os.path.dirname(self.path), shown(spec, 200)
        self.columns, self.skipped, self.digest = columns, Counter[str](), ""
        self._stamp: tuple[int, int] | None = None
        self._unpacked: BinaryIO | None = None

    def scan(self) -> Iterator[tuple[int, str]]:
        """Byte offset and prompt of each pair, in order.

        Raises:
            InputError: a line is no pair, or its images are not there.
        """
        sha, number, layout = hashlib.sha256(), 0, None
        with self._open() as file:
            while True:
                offset = file.tell()
                raw = file.readline(LONGEST_LINE + 1)
                if not raw:
                    break
                sha.update(raw)
                number += 1
                if raw.strip():
                    where = f"{self.spec}, line {number}"
                    row = _object(raw, where)
                    layout = layout or layout_of(row, self.columns, where)
                    try:
                        pair = self._pair(row, layout, where)
                    except Skipped as why:
                        self.skipped[str(why)] += 1
                        continue
                    for image in (pair.chosen, pair.rejected):
                        if isinstance(image, str) and not os.path.isfile(image):
                            raise InputError(
                                f"{where}: there is no image {shown(image, 200)}; paths are "
                                "relative to the file of pairs."
                            )
                    yield offset, pair.prompt
        self.digest = sha.hexdigest()
        if layout is None:
            raise InputError(f"{self.spec} holds no pairs: put an object on each line.")
        self.layout = layout

    def read(self, places: Iterable[int]) -> Iterator[Pair]:
        """The pairs at places that a scan gave.

        Raises:
            InputError: the file has changed since.
        """
        with self._open() as file:
            for place in places:
                file.seek(int(place))
                where = f"{self.spec}, byte {place}"
                row = _object(file.readline(LONGEST_LINE + 1), where)
                yield self._pair(row, self.layout, where)

    def _pair(self, row: dict[str, Any], layout: Layout, where: str) -> Pair:
        missing = [name for name in (*layout.small, *layout.images) if name not in row]
        if missing:
            raise InputError(
                f'{where}: no key "{shown(missing[0])}". Its keys: {listed(row)}. Every line needs '
                "the keys of the first."
            )
        try:
            prompt, best, worst = layout.order(row)
            chosen, rejected = (
                source_of(one, self.folder) for one in layout.winners(row, best, worst)
            )
        except ValueError as error:
            raise InputError(f"{where}: {error}.") from error
        if chosen == rejected:
            raise Skipped(SAME)
        rest = {k: v for k, v in row.items() if k not in (layout.prompt, *layout.images)}
        return Pair(Prompt(prompt, metadata=rest), chosen, rejected, where)

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        try:
            if self._unpacked is not None:
                self._unpacked.seek(0)
                yield self._unpacked
                return
            with open(self.path, "rb") as file:
                if self.path.endswith(".gz"):
                    self._unpacked = self._unpack(file)
                    yield self._unpacked
                    return
                status = os.fstat(file.fileno())
                stamp = (status.st_size, status.st_mtime_ns)
                if self._stamp not in (None, stamp):
                    raise InputError(
                        f"{self.spec} was changed while in use: restore it, or start a new run."
                    )
                self._stamp = stamp
                yield file
        except (OSError, EOFError, zlib.error) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(
                f"{self.spec} cannot be read ({shown(why)}): is it whole, and there for you?"
            ) from error

    def _unpack(self, file: BinaryIO) -> BinaryIO:
        unpacked = tempfile.TemporaryFile()
        weakref.finalize(self, unpacked.close)
        with gzip.GzipFile(fileobj=file) as packed:
            shutil.copyfileobj(packed, unpacked, 2**20)
        unpacked.seek(0)
        return unpacked


def _object(raw: bytes, where: str) -> dict[str, Any]:
    if len(raw) > LONGEST_LINE:
        raise InputError(f"{where}: longer than 1 MiB: is this a file of a pair on each line?")
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 at byte {error.start} of the line.") from error
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise InputError(f"{where}: not JSON ({why}): each line is one object.") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}, not an object with prompt and images.")
    return row
