"""Rows of large tables in files, each of which holds the rows that had changed since the last one.

    checkpoints/segments/segment-000012-0123456789abcdef.safetensors

A checkpoint lists its segments in order. Put back one after the other they give every row, because
a later one replaces what an earlier one says of the same row. A segment is never changed: its name
and its entry in the list hold its sha256. Several checkpoints may list the same one.

A segment is left out of the list when later ones have replaced all its rows. When the newest
segments are small, or most of what the files hold has been replaced, the rows that still count are
written once more, together with the new ones, so that files stay few and the disk they take is
bounded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from torch import Tensor

from genpol.runs.tensor_files import read_tensors, write_tensors
from offline.data.tables import Table
from offline.errors import InputError
from offline.files import sibling, siblings, sync_path

LARGEST = 32 << 20  # bytes of rows in a file, and of memory that saving takes
SMALL = 8 << 20  # bytes up to which a segment is written again rather than left alone
SPARE = 64 << 20  # bytes of replaced rows that files may hold beside as many as those that count
ROWS = "rows"

_NAME = r"segment-\d{6,}-[0-9a-f]{16}\.safetensors"


class Segment(BaseModel):
    """A file in a checkpoint's list."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    file: Annotated[str, Field(pattern=rf"^{_NAME}$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: NonNegativeInt


class SegmentList(BaseModel):
    """What a checkpoint says of its segments."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    files: list[Segment]
    """In the order in which they are put back."""
    used: dict[str, NonNegativeInt]
    """Of each table, how many rows are in use."""


class Segments:
    """Saves and reads back tables; remembers which file holds each row.

    Args:
        tables: called whenever they are saved or read; always the same tables.
    """

    def __init__(self, tables: Callable[[], Mapping[str, Table]]) -> None:
        self._tables = tables
        self._listed: dict[int, Segment] = {}  # of the last checkpoint, by a number that ascends
        self._owner = {
            name: np.full(len(table.changed), -1, np.int32) for name, table in tables().items()
        }
        """The number of the segment that holds each row; -1 for none."""
        self._pending: tuple[dict[int, Segment], dict[str, list[tuple[int, np.ndarray]]]] = ({}, {})

    # -- saving

    def write(self, folder: Path, step: int) -> SegmentList:
        """Write the rows that have changed; `commit` when the checkpoint is in place.

        Args:
            folder: made if absent.
            step: of the checkpoint, for the files' names.

        Returns:
            The list of the checkpoint.

        Raises:
            OSError: the disk refuses.
        """
        tables = self._tables()
        kept, rows = self._due(tables)
        listed = {number: self._listed[number] for number in kept}
        owned: dict[str, list[tuple[int, np.ndarray]]] = {name: [] for name in tables}
        following = max(self._listed, default=-1) + 1
        for number, part in enumerate(_parts(tables, rows), following):
            listed[number] = _write(folder, step, tables, part)
            for name, index in part.items():
                owned[name].append((number, index))
        if len(listed) > len(kept):
            sync_path(folder)
        self._pending = (listed, owned)
        used = {name: table.used for name, table in tables.items()}
        return SegmentList(files=list(listed.values()), used=used)

    def commit(self) -> None:
        """What `write` wrote counts: the checkpoint that lists it is in place."""
        self._listed, owned = self._pending
        for name, table in self._tables().items():
            for number, index in owned[name]:
                self._owner[name][index] = number
            _settle(table, table.used)

    def _due(self, tables: Mapping[str, Table]) -> tuple[list[int], dict[str, np.ndarray]]:
        """The segments that stay in the list, and the rows to write, ascending."""
        due = {name: table.changed[: table.used].copy() for name, table in tables.items()}
        counting = np.zeros(max(self._listed, default=-1) + 1, np.int64)  # bytes, by segment
        for name, table in tables.items():
            held = self._owner[name][: table.used][~due[name]]
            counting += np.bincount(held, minlength=len(counting)) * table.row_bytes
        total = sum(int(due[name].sum()) * table.row_bytes for name, table in tables.items())
        kept = [number for number in self._listed if counting[number]]

        def write_again(number: int) -> None:
            nonlocal total
            kept.remove(number)
            total += int(counting[number])
            for name, table in tables.items():
                due[name] |= self._owner[name][: table.used] == number

        # A small one joins one that is as small, so that their sizes fall by powers of two.
        while kept and counting[kept[-1]] <= min(total, SMALL):
            write_again(kept[-1])
        while kept and (
            sum(self._listed[number].bytes for number in kept)
            > 2 * sum(int(counting[number]) for number in kept) + SPARE
        ):
            write_again(min(kept, key=lambda n: int(counting[n]) / self._listed[n].bytes))
        return kept, {name: np.flatnonzero(rows) for name, rows in due.items()}

    # -- reading

    def read(self, folder: Path, listed: SegmentList) -> None:
        """Put the rows back into the tables, one file at a time, each checked before it is used.

        What the tables held is lost, also where this fails.

        Raises:
            OSError: a file cannot be read.
            Torn: a file is not the one that was written.
            InputError: the rows are of other tables.
        """
        tables = self._tables()
        self._listed, self._pending = {}, ({}, {})
        for name, table in tables.items():
            _settle(table, 0)
            self._owner[name].fill(-1)
        for number, segment in enumerate(listed.files):
            path = folder / segment.file
            content = read_tensors(path, segment.sha256)
            for name, index in _put_back(content, tables, path).items():
                self._owner[name][index] = number
        for name, table in tables.items():
            used = listed.used.get(name, -1)
            if not 0 <= used <= len(table.changed) or (self._owner[name][:used] < 0).any():
                raise InputError(f"the segments in {folder} do not hold every row of the {name}")
            _settle(table, used)
        self._listed = dict(enumerate(listed.files))


def prune(folder: Path, kept: set[str]) -> None:
    """Remove the segments in `folder` that are not among `kept`, also those that a kill left half
    written; other files stay."""
    for path in [
        *folder.glob("segment-*.safetensors"),
        *siblings(folder / "segment-*.safetensors"),
    ]:
        if path.name not in kept:
            path.unlink(missing_ok=True)


def _settle(table: Table, used: int) -> None:
    """A file holds each of the rows in use."""
    table.changed[:used], table.changed[used:] = False, True


def _parts(
    tables: Mapping[str, Table], rows: Mapping[str, np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """The rows shared out among files, each of at most `LARGEST` bytes, or of one row."""
    part: dict[str, np.ndarray] = {}
    room = LARGEST
    for name, table in tables.items():
        left = rows[name]
        while len(left):
            fitting = room // (table.row_bytes + left.itemsize)
            if not fitting and part:
                yield part
                part, room = {}, LARGEST
                continue
            part[name], left = left[: max(fitting, 1)], left[max(fitting, 1) :]
            room -= len(part[name]) * (table.row_bytes + left.itemsize)
    if part:
        yield part


def _write(
    folder: Path, step: int, tables: Mapping[str, Table], part: Mapping[str, np.ndarray]
) -> Segment:
    content = {}
    for name, index in part.items():
        content[f"{name}/{ROWS}"] = torch.from_numpy(index)
        for key, array in tables[name].arrays.items():
            content[f"{name}/{key}"] = torch.from_numpy(array[_span(index)])
    folder.mkdir(parents=True, exist_ok=True)
    temporary = sibling(folder / f"segment-{step:06d}.safetensors")
    try:
        digest = write_tensors(temporary, content)
        path = folder / f"segment-{step:06d}-{digest[:16]}.safetensors"
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return Segment(file=path.name, sha256=digest, bytes=path.stat().st_size)


def _put_back(
    content: dict[str, Tensor], tables: Mapping[str, Table], path: Path
) -> dict[str, np.ndarray]:
    """Write a segment's rows into the tables; which they are, by table.

    Raises:
        InputError: the rows are of other tables.
    """
    found = {}
    for name, table in tables.items():
        if f"{name}/{ROWS}" not in content:
            continue
        index = content.pop(f"{name}/{ROWS}").numpy()
        _check_rows(index, table, name, path)
        for key, array in table.arrays.items():
            saved = content.pop(f"{name}/{key}", None)
            values = None if saved is None else saved.numpy()
            expected = (array.dtype, (len(index), *array.shape[1:]))
            if values is None or (values.dtype, values.shape) != expected:
                kind = "none" if values is None else f"{values.dtype} {values.shape[1:]}"
                raise InputError(
                    f'the {name} were saved with rows of "{key}" that are {kind}, this run\'s are '
                    f"{array.dtype} {array.shape[1:]}: resume with the settings of the run that "
                    f"saved them ({path})"
                )
            array[_span(index)] = values
        found[name] = index
    if content:
        other = sorted(content)[0][:80]
        raise InputError(f'{path} holds "{other}", which this run has not')
    return found


def _check_rows(index: np.ndarray, table: Table, name: str, path: Path) -> None:
    whole = index.dtype == np.int64 and index.ndim == 1 and len(index) > 0
    if not whole or index[0] < 0 or index[-1] >= len(table.changed) or (np.diff(index) <= 0).any():
        raise InputError(
            f"{path} holds no ascending rows among the {len(table.changed)} of the {name}: resume "
            "with the settings of the run that saved it"
        )


def _span(index: np.ndarray) -> slice | np.ndarray:
    """The same rows, where they are without gaps as a slice, which is read without a copy."""
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first + 1 == len(index) else index
