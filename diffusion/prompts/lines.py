"""Files of prompts that are read record by record, and again by byte offset: text, JSON, tables.

Every complaint about a file is one line that names the file, the line and the remedy.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

from diffusion.errors import InputError
from diffusion.prompts.columns import LONGEST, Columns

# From the lines at the start of a file to what reads records from where the lines are.
Parser = Callable[["Lines"], Callable[[], Iterator[str]]]


class Lines:
    """The decoded lines of a file.

    `offset` (bytes) is where the next one starts. `began` is where a record began, for a parser
    that reads ahead; other records begin where the next line did.
    """

    def __init__(self, file: BinaryIO, spec: str) -> None:
        self.file, self.spec = file, spec
        self.offset, self.number = 0, 0  # `number` is the line last read, from 1
        self.began: int | None = None
        self.sha = hashlib.sha256()

    def seek(self, offset: int) -> None:
        self.file.seek(offset)
        self.offset = offset

    def error(self, what: str, number: int | None = None) -> InputError:
        return InputError(f"{self.spec}, line {number or self.number}: {what}")

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        raw = self.file.readline(LONGEST + 1)
        if not raw:
            raise StopIteration
        start, self.offset = self.offset, self.offset + len(raw)
        self.number += 1
        self.sha.update(raw)
        if len(raw) > LONGEST:
            raise self.error("longer than 1 MiB: is this a text file with a prompt on each line?")
        if start == 0 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise self.error("not UTF-8 at byte 0, but UTF-16: save the file as UTF-8.")
        if start == 0 and raw.startswith(b"\x1f\x8b"):
            raise self.error("not text, but packed by gzip: let the file's name end in .gz.")
        if b"\0" in raw:
            byte = start + raw.index(b"\0")
            raise self.error(f"a NUL at byte {byte}: a binary file, or UTF-16? Save it as UTF-8.")
        try:
            return raw.decode("utf-8-sig" if start == 0 else "utf-8")
        except UnicodeDecodeError as error:
            byte = start + error.start
            raise self.error(f"not UTF-8 at byte {byte}: save the file as UTF-8.") from error


# ----------------------------------------------------- records, from where the lines happen to be


def plain(lines: Lines) -> Callable[[], Iterator[str]]:
    """A prompt on each line."""
    return partial(_plain, lines)


def json_lines(columns: Columns, lines: Lines) -> Callable[[], Iterator[str]]:
    """A JSON object or string on each line."""
    return partial(_json_lines, columns, lines)


def table(columns: Columns, delimiter: str, lines: Lines) -> Callable[[], Iterator[str]]:
    """Rows below a header, which is read at once; raises when it lacks the prompt's column."""
    _, header = next(_rows(delimiter, lines), (0, None))
    if header is None:
        return partial(iter, ())
    names = [name.strip() for name in header]
    index = names.index(columns.choose(names, lines.error, "column"))
    return partial(_fields, columns, index, names, delimiter, lines)


def record(columns: Columns, value: object, fail: Callable[[str], InputError]) -> str:
    """The prompt of a JSON value: a string, or an object with the chosen key."""
    if not isinstance(value, dict):
        return columns.prompt({columns.name: value}, fail)
    columns.choose(value, fail, "key")
    return columns.prompt(value, fail)


def why(error: ValueError | RecursionError) -> str:
    """What JSON found wrong, in short."""
    return error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__


def _plain(lines: Lines) -> Iterator[str]:
    for line in lines:
        text = line.strip()
        if "\r" in text:
            raise lines.error("a carriage return inside: save the file with \\n line ends.")
        yield text


def _json_lines(columns: Columns, lines: Lines) -> Iterator[str]:
    for line in lines:
        if not line.strip():
            yield ""
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = f"not JSON ({why(error)}): each line is one object or string."
            raise lines.error(what) from error
        yield record(columns, value, lines.error)


def _fields(
    columns: Columns, index: int, names: list[str], delimiter: str, lines: Lines
) -> Iterator[str]:
    width = len(names)
    first = {name: i for i, name in reversed(list(enumerate(names))) if name}
    for number, row in _rows(delimiter, lines):
        if len(row) <= index or any(row[width:]):
            raise lines.error(
                f"{len(row)} fields where the header has {width}: "
                "put double quotes around a prompt with a separator in it.",
                number,
            )
        values = {name: row[i] for name, i in first.items() if i < len(row)}
        values[columns.name] = row[index]
        fail = partial(lines.error, number=number)
        yield columns.prompt(values, fail, empty_is_none=True)


def _rows(delimiter: str, lines: Lines) -> Iterator[tuple[int, list[str]]]:
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
