"""A JSON file of prompts: a list, or an object that holds one under "prompts", read as a stream.

Records are strings or objects, as on the lines of a .jsonl file, which a .json file may also be.
Only the record that is being read is in memory, and it may have at most 1 MiB.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from functools import partial

from diffusion.errors import InputError
from diffusion.prompts.columns import LONGEST, Columns
from diffusion.prompts.lines import Lines, json_lines, record, why

KEY = "prompts"
_WANTED = f'[...] of texts or objects, {{"{KEY}": [...]}}, or an object on each line'
_SPACE = " \t\n\r"
_CHUNK, _SHORT = 2**16, 2**12  # bytes that a scan, and the reading of one record, ask for
_DECODER = json.JSONDecoder()


def json_list(columns: Columns, lines: Lines) -> Callable[[], Iterator[str]]:
    """From the start of a .json file to what reads its records; see `diffusion.prompts.lines`."""
    start = lines.file.read(LONGEST + 1)
    lines.file.seek(0)
    if _is_lines(start):
        return json_lines(columns, lines)
    return partial(_records, columns, lines)


def _is_lines(start: bytes) -> bool:
    """Whether the first line is an object of its own, and not one that holds the list."""
    first = start.removeprefix(codecs.BOM_UTF8).lstrip().split(b"\n", 1)[0]
    if not first.startswith(b"{"):
        return False
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not isinstance(value.get(KEY), list)


def _records(columns: Columns, lines: Lines) -> Iterator[str]:
    """From byte 0 the whole list, to its end and the file's; else from the record there on."""
    text = _Text(lines, _SHORT if lines.offset else _CHUNK)
    if lines.offset:  # the start of a record, which a scan gave
        yield record(columns, text.value(), text.error)
        return
    yield from _list_records(columns, text, nested=_enter(text))
    if text.peek():
        raise text.torn("nothing after the end of the list")


def _enter(text: _Text) -> bool:
    """Go to the list; returns whether it stands in an object."""
    first = text.peek()
    if first == "[":
        return False
    if first != "{":
        what = f'starts with "{first}"' if first else "is empty"
        raise text.error(f"{what}: expected {_WANTED}.")
    text.take()
    while text.peek() != "}":
        key = _key(text)
        if key == KEY and text.peek() == "[":
            return True
        text.value()  # one that says something else of the file
        if text.peek() == ",":
            text.take()
    raise text.error(f'an object without a list under "{KEY}": expected {_WANTED}.')


def _list_records(columns: Columns, text: _Text, nested: bool) -> Iterator[str]:
    text.take()
    while text.peek() != "]":
        text.begin()
        yield record(columns, text.value(), text.error)
        text.number += 1
        if text.peek() == ",":
            text.take()
            if text.peek() == "]":
                raise text.error("a comma before the end of the list: take it out.")
        elif text.peek() != "]":
            raise text.torn("a comma or the end of the list")
    text.take()
    if nested:
        while text.peek() == ",":
            text.take()
            _key(text)
            text.value()
        if text.peek() != "}":
            raise text.torn('"}"')
        text.take()


def _key(text: _Text) -> str:
    key = text.value()
    if not isinstance(key, str) or text.peek() != ":":
        raise text.torn("a key in double quotes and a colon")
    text.take()
    return key


class _Text:
    """The characters of a file from where its lines are, decoded as they are asked for."""

    def __init__(self, lines: Lines, chunk: int) -> None:
        self.lines, self.chunk, self.number = lines, chunk, 1
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self.at = "", 0  # what is decoded, and the next character of it
        self.mark, self.bytes = 0, lines.offset  # a character of `text`, and the byte it starts at
        self.read = lines.offset  # the byte at which the next chunk starts
        self.ended = False

    def error(self, what: str) -> InputError:
        return InputError(f"{self.lines.spec}, record {self.number}: {what}")

    def torn(self, expected: str) -> InputError:
        found = f'found "{self.peek()}"' if self.peek() else "the file ends: is it whole?"
        return self.error(f"not JSON: expected {expected}, {found}")

    def more(self) -> bool:
        """Read on; whether there was anything."""
        if self.ended:
            return False
        self.lines.file.seek(self.read)
        raw = self.lines.file.read(self.chunk)
        self.lines.sha.update(raw)
        start, self.read, self.ended = self.read, self.read + len(raw), not raw
        if start == 0:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise self.error("not UTF-8 at byte 0, but UTF-16: save the file as UTF-8.")
            if raw.startswith(codecs.BOM_UTF8):
                raw, self.bytes = raw[3:], 3
        try:
            fresh = self.decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            raise self.error(
                f"not UTF-8 near byte {start + error.start}: save the file as UTF-8."
            ) from error
        if raw:
            self._place()
            self.text, self.at, self.mark = self.text[self.at :] + fresh, 0, 0
        return bool(raw)

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in _SPACE:
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                return ""

    def take(self) -> None:
        self.at += 1

    def begin(self) -> None:
        """A record starts at the next character."""
        self.peek()
        self.lines.began = self._place()

    def _place(self) -> int:
        """The byte at which the next character stands."""
        self.bytes += len(self.text[self.mark : self.at].encode())
        self.mark = self.at
        return self.bytes

    def value(self) -> object:
        """The JSON value that starts at the next character."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                if len(self.text) - self.at > LONGEST:
                    what = "longer than 1 MiB: is each record one prompt?"
                    raise self.error(what) from error
                if not isinstance(error, json.JSONDecodeError) or not self.more():
                    raise self.error(f"not JSON ({why(error)}): is the file whole?") from error
                continue
            if end < len(self.text) or not self.more():  # else a number may go on
                self.at = end
                return value
