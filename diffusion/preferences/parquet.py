"""Pairs in parquet files, their images usually embedded: only prompts and preferences are scanned.

A row is read again by its number, through its row group, a few rows at a time: memory grows with
neither the file nor its row groups.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from diffusion.errors import InputError, shown
from diffusion.preferences.layouts import Layout, Skipped, layout_of
from diffusion.preferences.pair import Pair, source_of
from diffusion.prompts.prompt import Prompt

SCANNED, READ = 4096, 16  # rows at a time


def parquet_files(spec: str) -> list[str]:
    """The files that a name, a folder or a pattern means, sorted; empty where it means none."""
    path = os.path.abspath(os.path.expanduser(spec))
    if os.path.isdir(path):
        found = glob.glob(os.path.join(glob.escape(path), "**", "*.parquet"), recursive=True)
        return sorted(found)
    if not os.path.exists(path) and glob.has_magic(spec):
        return sorted(name for name in glob.glob(path) if name.endswith(".parquet"))
    return [path] if path.endswith(".parquet") else []


class Parquet:
    """Parquet files of one layout, as one file.

    Attributes:
        layout: which columns are what.
        skipped: why rows were skipped -> how many.
        digest: hex SHA-256 of the files' sizes and of the rows' prompts and preferences.
    """

    def __init__(self, spec: str, paths: Sequence[str], columns: str | None) -> None:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise InputError('pairs in parquet need pyarrow: pip install "genpol[data]"') from error
        self.spec, self.paths = shown(spec, 200), list(paths)
        self.skipped, self.digest = Counter[str](), ""
        self._stamps = [_stamp(path) for path in paths]
        # Number of the first row of each row group, over all files; and where each group is.
        starts, self._groups = [0], list[tuple[int, int]]()
        layout = None
        for number, path in enumerate(self.paths):
            with _opened(path) as file:
                names = file.schema_arrow.names
                layout = layout or layout_of(names, columns, shown(path, 200))
                missing = [n for n in (*layout.small, *layout.images) if n not in names]
                if missing:
                    raise InputError(
                        f'{shown(path, 200)} has no column "{missing[0]}", which the first of '
                        f"{len(self.paths)} files has: give files of one layout."
                    )
                if number == 0:
                    self._metadata = _small_columns(file.schema_arrow, layout)
                for group in range(file.num_row_groups):
                    self._groups.append((number, group))
                    starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        assert layout is not None
        self.layout: Layout = layout
        self._starts = np.asarray(starts, np.int64)
        # The first row of each file, for messages.
        firsts = {n: s for (n, g), s in zip(self._groups, starts, strict=False) if g == 0}
        self._first = [firsts.get(number, 0) for number in range(len(self.paths))]

    def scan(self) -> Iterator[tuple[int, str]]:
        """Number over all files and prompt of each pair, in order.

        Raises:
            InputError: a row is no pair.
        """
        sha, place = hashlib.sha256(repr(self._stamps_without_time()).encode()), 0
        for number, path in enumerate(self.paths):
            with _opened(path) as file:
                batches = file.iter_batches(SCANNED, columns=list(self.layout.small))
                for batch in batches:
                    for row in batch.to_pylist():
                        sha.update(repr(row).encode("utf-8", "backslashreplace"))
                        try:
                            prompt = self.layout.order(row)[0]
                        except Skipped as why:
                            self.skipped[str(why)] += 1
                        except ValueError as error:
                            raise InputError(f"{self._where(number, place)}: {error}.") from error
                        else:
                            yield place, prompt
                        place += 1
        self.digest = sha.hexdigest()
        if place == 0:
            raise InputError(f"{self.spec} holds no rows.")

    def read(self, places: Iterable[int]) -> Iterator[Pair]:
        """The pairs at places that a scan gave, in the files' order.

        Raises:
            InputError: a file has changed since, or a row's images are not there.
        """
        ordered = np.sort(np.asarray(list(places), np.int64))
        of = np.searchsorted(self._starts, ordered, "right") - 1
        columns = [*{*self.layout.small, *self.layout.images, *self._metadata}]
        for group in np.unique(of).tolist():
            number, inside = self._groups[group]
            self._require_unchanged(number)
            wanted = (ordered[of == group] - self._starts[group]).tolist()
            with _opened(self.paths[number]) as file:
                first, left = 0, iter(wanted)
                following = next(left)
                for batch in file.iter_batches(READ, row_groups=[inside], columns=columns):
                    while following is not None and following < first + len(batch):
                        row = batch.slice(following - first, 1).to_pylist()[0]
                        place = int(self._starts[group]) + following
                        yield self._pair(row, number, place)
                        following = next(left, None)
                    first += len(batch)
                    if following is None:
                        break

    def _pair(self, row: dict[str, Any], number: int, place: int) -> Pair:
        where, layout = self._where(number, place), self.layout
        folder = os.path.dirname(self.paths[number])
        try:
            prompt, best, worst = layout.order(row)
            chosen, rejected = (source_of(one, folder) for one in layout.winners(row, best, worst))
        except (ValueError, Skipped) as error:
            raise InputError(f"{where}: {error}.") from error
        rest = {name: row[name] for name in self._metadata}
        return Pair(Prompt(prompt, metadata=rest), chosen, rejected, where)

    def _where(self, number: int, place: int) -> str:
        return f"{shown(self.paths[number], 200)}, row {place - self._first[number] + 1}"

    def _stamps_without_time(self) -> list[int]:
        return [size for size, _ in self._stamps]

    def _require_unchanged(self, number: int) -> None:
        if _stamp(self.paths[number]) != self._stamps[number]:
            raise InputError(
                f"{shown(self.paths[number], 200)} was changed while in use: restore it, or start "
                "a new run."
            )


def _small_columns(schema: Any, layout: Layout) -> list[str]:
    """Texts and numbers beside the pair."""
    from pyarrow import types

    kinds = (types.is_string, types.is_large_string, types.is_integer, types.is_floating)
    return [
        field.name
        for field in schema
        if field.name not in (layout.prompt, *layout.images)
        and (any(kind(field.type) for kind in kinds) or types.is_boolean(field.type))
    ]


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{shown(path, 200)} cannot be read ({error.strerror}).") from error
    return status.st_size, status.st_mtime_ns


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """A ParquetFile; what pyarrow says of a torn one becomes one line."""
    import pyarrow
    import pyarrow.parquet

    try:
        # Pages are read as they are needed: a row group of images may be a gigabyte.
        with pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            yield file
    except (OSError, pyarrow.ArrowException, MemoryError, UnicodeDecodeError) as error:
        raise InputError(
            f"{shown(path, 200)} cannot be read as parquet ({shown(error)}): is it whole?"
        ) from error
