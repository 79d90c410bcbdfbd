"""Prompts in Parquet files, and in the Arrow files of a dataset that `datasets` saved to disk.

The place of a prompt is the number of its row over all files. Batches of rows stream through memory
one at a time: a scan reads the columns of texts alone, and whoever asks for some rows passes over
what lies between them. Row groups without a wanted row are not read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusion.errors import InputError, shown
from diffusion.prompts.columns import LONGEST, Columns, is_negative
from diffusion.prompts.files import changed, stamp_of, unreadable

SUFFIXES = (".parquet", ".arrow")
_ROWS, _BYTES = 1024, 2**22  # of a batch: at most, and about
_RATIO = 100  # rows for each byte of a file; no file of prompts has more


class Tables:
    """Files of one schema, in their order; see `diffusion.prompts.files.PromptFile`."""

    def __init__(self, paths: Sequence[str], spec: str, columns: Columns) -> None:
        arrow(spec)
        self.paths, self.spec, self.columns = list(paths), spec, columns
        self.digest = ""
        self.digests: list[str] = []
        self.stamps: list[tuple[int, int]] = []
        self.ends: list[int] = []  # of each file, the place after its last row

    def scan(self, whole: bool = False) -> Iterator[tuple[int, str]]:
        digests, stamps, ends = list[str](), list[tuple[int, int]](), list[int]()
        place, empty = 0, True
        for path in self.paths:
            name = self._name(path)
            first = place
            with _readable(name), _opened(path, name) as file:
                texts = self._texts(file.schema, name)
                for start, batch in file.batches(None if whole else texts):
                    batch.validate(full=True)  # places in a torn file would lead anywhere
                    for i, row in enumerate(_rows(batch)):
                        text = self._prompt(row, name, start + i)
                        if text:
                            empty = False
                            yield first + start + i, text
                    place = first + start + batch.num_rows
            digest, stamp = _digest_and_stamp(path, name)
            digests.append(digest)
            stamps.append(stamp)
            ends.append(place)
        if empty:
            raise InputError(f"{self.spec} holds no prompts: put one in each row.")
        joined = hashlib.sha256("\n".join(digests).encode()).hexdigest()
        self.digest = digests[0] if len(digests) == 1 else joined
        self.digests, self.stamps, self.ends = digests, stamps, ends

    def read(self, places: Iterable[int]) -> list[str]:
        wanted = [int(place) for place in places]
        found: dict[int, str] = {}
        first = 0
        for number, (path, end) in enumerate(zip(self.paths, self.ends, strict=True)):
            rows = sorted({place - first for place in wanted if first <= place < end})
            if rows:
                name = self._name(path)
                self._require_unchanged(number, name)
                with _readable(name), _opened(path, name) as file:
                    for row, values in _some(file, rows):
                        found[first + row] = self._prompt(values, name, row)
            first = end
        return [found[place] for place in wanted]

    def _name(self, path: str) -> str:
        """The file as messages name it."""
        if len(self.paths) == 1:
            return self.spec
        return f"{self.spec}, {shown(os.path.basename(path))}"

    def _texts(self, schema: Any, name: str) -> list[str]:
        """The columns that a scan reads: the prompt's, and that of negative prompts."""

        def fail(what: str) -> InputError:
            return InputError(f"{name}: {what}")

        texts = [field.name for field in schema if _is_text(field.type)]
        column = self.columns.choose(schema.names, fail, "column", texts)
        if column not in texts:
            kind = shown(str(schema.field(schema.get_field_index(column)).type))
            raise fail(
                f'the column "{shown(column)}" holds {kind}, not text: name another with '
                "--prompt-column."
            )
        return [column, *(other for other in schema.names if is_negative(other))]

    def _prompt(self, row: dict[str, Any], name: str, number: int) -> str:
        def fail(what: str) -> InputError:
            return InputError(f"{name}, row {number + 1}: {what}")

        text = row[self.columns.name]
        if isinstance(text, str) and len(text) > LONGEST:
            raise fail("longer than 1 MiB: is this a column of prompts?")
        return self.columns.prompt(row, fail)

    def _require_unchanged(self, number: int, name: str) -> None:
        with unreadable(name), open(self.paths[number], "rb") as file:
            stamp = stamp_of(file)
        if stamp == self.stamps[number]:
            return
        digest, stamp = _digest_and_stamp(self.paths[number], name)
        if digest != self.digests[number]:
            raise changed(name)
        self.stamps[number] = stamp


def arrow(spec: str) -> Any:
    """The package that reads both kinds; InputError where it is missing."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f'{spec}: reading it needs pyarrow: pip install "genpol[data]"') from error
    return pyarrow


def _digest_and_stamp(path: str, name: str) -> tuple[str, tuple[int, int]]:
    with unreadable(name), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), stamp_of(file)


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    for i in range(batch.num_rows):
        yield {
            name: _value(column[i])
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }


def _value(scalar: Any) -> Any:
    """A cell as Python holds it; one that Python cannot hold (nanoseconds) as text."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        import pyarrow

        return scalar.cast(pyarrow.string()).as_py()


def _some(file: _Parquet | _Arrow, rows: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of these numbers, which ascend."""
    waiting = iter(rows)
    row = next(waiting, None)
    for start, batch in file.batches(None, rows):
        if row is not None and row < start + batch.num_rows:
            batch.validate(full=True)
        while row is not None and row < start + batch.num_rows:
            yield row, next(_rows(batch.slice(row - start, 1)))
            row = next(waiting, None)
        if row is None:
            return


# ------------------------------------------------------------------------------ the two formats


class _Parquet:
    """Batches of the row groups of a Parquet file."""

    def __init__(self, path: str, name: str) -> None:
        import pyarrow.parquet

        # Without buffering ahead a column of a row group streams; its size then does not matter.
        self.file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        self.schema = self.file.schema_arrow
        if self.file.metadata.num_rows > _RATIO * os.path.getsize(path):
            self.file.close()
            raise InputError(
                f"{name} says that it has {self.file.metadata.num_rows} rows, more than its bytes "
                "can hold: is it a file of prompts?"
            )

    def batches(
        self, columns: list[str] | None, rows: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Number of the first row, and the batch; of the row groups with one of `rows`."""
        start = 0
        for index in range(self.file.num_row_groups):
            group = self.file.metadata.row_group(index)
            end = start + group.num_rows
            if rows is None or any(start <= row < end for row in rows):
                each = max(1, group.total_byte_size // max(1, group.num_rows))
                size = max(1, min(_ROWS, _BYTES // each))
                at = start
                for batch in self.file.iter_batches(
                    size, row_groups=[index], columns=columns, use_threads=False
                ):
                    yield at, batch
                    at += batch.num_rows
            start = end

    def close(self) -> None:
        self.file.close()


class _Arrow:
    """Batches of an Arrow file, which stays on disk: it is mapped into memory."""

    def __init__(self, path: str, name: str) -> None:
        import pyarrow

        self.map = pyarrow.memory_map(path)
        try:
            try:
                self.reader = pyarrow.ipc.open_stream(self.map)
            except pyarrow.ArrowInvalid:  # the format with random access, which has a footer
                self.map.seek(0)
                whole = pyarrow.ipc.open_file(self.map)
                self.reader = (whole.get_batch(i) for i in range(whole.num_record_batches))
                self.schema = whole.schema
            else:
                self.schema = self.reader.schema
        except BaseException:
            self.map.close()
            raise

    def batches(
        self, columns: list[str] | None, rows: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Number of the first row, and the batch."""
        start = 0
        for batch in self.reader:
            if columns is not None:
                batch = batch.select(columns)
            yield start, batch
            start += batch.num_rows

    def close(self) -> None:
        self.map.close()


@contextmanager
def _opened(path: str, name: str) -> Iterator[_Parquet | _Arrow]:
    file = _Arrow(path, name) if path.lower().endswith(".arrow") else _Parquet(path, name)
    try:
        yield file
    finally:
        file.close()


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn whatever a torn file raises into one line."""
    import pyarrow

    try:
        yield
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: a text in it is not UTF-8: write the file again.") from error
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
        said = shown(error, 120) or type(error).__name__
        raise InputError(f"{name} cannot be read ({said}): is the file whole?") from error
