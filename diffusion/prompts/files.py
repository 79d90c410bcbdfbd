"""Files of prompts: text, JSON lines, CSV and TSV, read record by record and again by byte offset.

Every complaint about a file is one line that names the file, the line and the remedy.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BufferedReader

from diffusion.errors import InputError, did_you_mean, listed, shown

LONGEST_LINE = 2**20  # bytes; more is not a file of prompts
FORMATS = ".txt, .jsonl, .csv or .tsv"


def exists(spec: str) -> bool:
    """Whether a path leads to anything, a folder and a pipe included."""
    return os.path.exists(os.path.expanduser(spec))


class PromptFile:
    """A file of prompts. `digest` (hex SHA-256 of its bytes) is there once `scan` has ended."""

    def __init__(self, spec: str, column: str) -> None:
        self.path = os.path.abspath(os.path.expanduser(spec))
        self.spec = spec = shown(spec, 200)  # as messages show it
        self.column = column
        self.digest = ""
        self.stamp = (-1, -1)  # size and modification time at which the digest was right
        if os.path.isdir(self.path):
            raise InputError(f"{spec} is a folder: give one file of prompts ({FORMATS}).")
        if not os.path.isfile(self.path):
            raise InputError(f"{spec} is not a regular file: save the prompts in one ({FORMATS}).")
        suffix = os.path.splitext(self.path)[1].lower()
        # From the lines at the start of the file to what reads records from where the lines are.
        self.parser: Callable[[_Lines], Callable[[], Iterator[str]]]
        if suffix in (".csv", ".tsv"):
            self.parser = partial(_table, column, "," if suffix == ".csv" else "\t")
        elif suffix in (".jsonl", ".ndjson"):
            self.parser = partial(partial, _json_lines, column)
        elif suffix in (".txt", ".text", ""):
            self.parser = partial(partial, _plain)
        else:
            raise InputError(f'{spec}: prompts come as {FORMATS}, not as "{suffix}": convert it.')

    def scan(self) -> Iterator[tuple[int, str]]:
        """Byte offset and text of each prompt, in order, blank ones skipped; at least one."""
        empty = True
        with self._open() as lines:
            stamp = _stamp(lines.file)
            records = self.parser(lines)()
            while True:
                offset = lines.offset  # parsers read no line ahead, so the record starts here
                text = next(records, None)
                if text is None:
                    break
                if text:
                    empty = False
                    yield offset, text
            self.digest, self.stamp = lines.sha.hexdigest(), stamp
        if empty:
            raise InputError(f"{self.spec} holds no prompts: put one on each line.")

    def read(self, offsets: Iterable[int]) -> list[str]:
        """The prompts at `offsets`, which a scan gave; refuses a file that changed since."""
        with self._open() as lines:
            stamp = _stamp(lines.file)
            if stamp != self.stamp:
                if hashlib.file_digest(lines.file, "sha256").hexdigest() != self.digest:
                    raise InputError(
                        f"{self.spec} was changed while in use: restore it, or start a new run."
                    )
                self.stamp = stamp
                lines.seek(0)
            records = self.parser(lines)
            texts = []
            for offset in offsets:
                lines.seek(int(offset))
                texts.append(next(records()))
            return texts

    @contextmanager
    def _open(self) -> Iterator[_Lines]:
        try:
            with open(self.path, "rb") as file:
                yield _Lines(file, self.spec)
        except OSError as error:
            why = error.strerror or error
            raise InputError(f"{self.spec} cannot be read ({why}): is it there for you?") from error


class _Lines:
    """The decoded lines of a file. `offset` (bytes) is where the next one starts."""

    def __init__(self, file: BufferedReader, spec: str) -> None:
        self.file, self.spec = file, spec
        self.offset, self.number = 0, 0  # `number` is the line last read, from 1
        self.sha = hashlib.sha256()

    def seek(self, offset: int) -> None:
        self.file.seek(offset)
        self.offset = offset

    def error(self, what: str, number: int | None = None) -> InputError:
        return InputError(f"{self.spec}, line {number or self.number}: {what}")

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = self.file.readline(LONGEST_LINE + 1)
        if not raw:
            raise StopIteration
        start, self.offset = self.offset, self.offset + len(raw)
        self.number += 1
        self.sha.update(raw)
        if len(raw) > LONGEST_LINE:
            raise self.error("longer than 1 MiB: is this a text file with a prompt on each line?")
        if start == 0 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise self.error("not UTF-8 at byte 0, but UTF-16: save the file as UTF-8.")
        if b"\0" in raw:
            byte = start + raw.index(b"\0")
            raise self.error(f"a NUL at byte {byte}: a binary file, or UTF-16? Save it as UTF-8.")
        try:
            return raw.decode("utf-8-sig" if start == 0 else "utf-8")
        except UnicodeDecodeError as error:
            byte = start + error.start
            raise self.error(f"not UTF-8 at byte {byte}: save the file as UTF-8.") from error


def _stamp(file: BufferedReader) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


# ----------------------------------------------------- records, from where the lines happen to be


def _plain(lines: _Lines) -> Iterator[str]:
    for line in lines:
        text = line.strip()
        if "\r" in text:
            raise lines.error("a carriage return inside: save the file with \\n line ends.")
        yield text


def _json_lines(column: str, lines: _Lines) -> Iterator[str]:
    for line in lines:
        if not line.strip():
            yield ""
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise lines.error(f"not JSON ({why}): each line is one object or string.") from error
        if isinstance(record, dict):
            if column not in record:
                raise lines.error(_no_column("key", column, list(record)))
            record = record[column]
        if not isinstance(record, str):
            kind = "null" if record is None else type(record).__name__
            raise lines.error(f"the prompt is a {kind}, not a string: put it in double quotes.")
        if "\0" in record or any("\ud800" <= letter <= "\udfff" for letter in record):
            raise lines.error("a NUL or half a surrogate pair in the prompt: take it out.")
        yield record.strip()


def _table(column: str, delimiter: str, lines: _Lines) -> Callable[[], Iterator[str]]:
    """Reads the header; raises when it lacks `column`."""
    _, header = next(_rows(delimiter, lines), (0, None))
    if header is None:
        return partial(iter, ())
    names = [name.strip() for name in header]
    if column not in names:
        raise lines.error(_no_column("column", column, names))
    return partial(_fields, names.index(column), len(names), delimiter, lines)


def _fields(index: int, width: int, delimiter: str, lines: _Lines) -> Iterator[str]:
    for number, row in _rows(delimiter, lines):
        if len(row) <= index or any(row[width:]):
            raise lines.error(
                f"{len(row)} fields where the header has {width}: "
                "put double quotes around a prompt with a separator in it.",
                number,
            )
        yield row[index].strip()


def _rows(delimiter: str, lines: _Lines) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row that is not blank; a quoted field may span lines."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = lines.number + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise lines.error(f"{error}: is a double quote left open?", number) from error
        if row:
            yield number, row


def _no_column(kind: str, column: str, names: list[str]) -> str:
    """What is missing, what there is, and which of it was perhaps meant, on one line."""
    hint = did_you_mean(column, names)
    known = f" Known: {listed(names)}." if hint.startswith(" Did") else ""
    return f'no {kind} "{shown(column)}".{hint}{known}'
