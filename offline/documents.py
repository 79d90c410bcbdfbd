"""Reads JSON into dataclasses: the one door for documents that somebody else may have written.

A document is a dataclass. Its annotations are the schema, and pydantic holds what was read to it:
an integer is no text, nothing is converted but whole numbers to floats, lists to tuples and text to
paths. Keys that the dataclass does not have are ignored. Depth is bounded by pydantic's parser.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from offline.errors import InputError, shown

T = TypeVar("T")
LARGEST = 256 << 20  # bytes of a document


def read_document(source: Path | str | bytes, kind: type[T], what: str | None = None) -> T:
    """A document as an instance of `kind`.

    Args:
        source: a file, or the JSON text itself.
        kind: a dataclass, or any type that pydantic knows, such as `dict[str, float]`.
        what: what errors call it; default the file's path.

    Raises:
        InputError: it cannot be read, is no JSON, or an entry is missing or of another type; names
            the first such entry, what was expected and what came.
    """
    from pydantic import ValidationError

    name = f'"{shown(str(source))}"' if what is None else what
    text = _text(source, name) if isinstance(source, Path) else source
    try:
        return _schema(cast(Any, kind)).validate_json(text, strict=True)
    except ValidationError as error:
        raise InputError(_line(error, name)) from None


def as_document(values: Any, kind: type[T], what: str) -> T:
    """The same of a document that has been decoded already, such as a part of another.

    Raises:
        InputError: see `read_document`.
    """
    try:
        text = json.dumps(values)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what} cannot be said in JSON: {shown(str(error))}") from error
    return read_document(text, kind, what)


def read_json(source: Path | str | bytes, what: str | None = None) -> Any:
    """Any JSON, decoded.

    Raises:
        InputError: it cannot be read, is no JSON, or is nested too deeply.
    """
    from pydantic_core import from_json

    name = f'"{shown(str(source))}"' if what is None else what
    text = _text(source, name) if isinstance(source, Path) else source
    try:
        return from_json(text)
    except ValueError as error:
        raise InputError(f"{name} is not JSON ({shown(str(error))})") from None


def _text(path: Path, name: str) -> bytes:
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise InputError(f"{name} has {size} bytes, expected a document of at most {LARGEST}")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{name} is missing: was the folder copied whole?") from None
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or shown(str(error))}") from error


@cache
def _schema(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _line(error: Any, name: str) -> str:
    """The first of a ValidationError's faults in one line."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"{name} is not JSON ({shown(str(first['ctx']['error']))})"
    at = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("missing", "missing_argument"):
        return f'{name} has no "{shown(at)}"'
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f'{name} has the unknown entry "{shown(at)}": was it written by another version?'
    if first["type"].startswith("dataclass"):
        expected = "should be a JSON object"
    else:
        expected = first["msg"].replace("Input should", "should").replace("a valid ", "a ")
        expected = re.sub(r"\ba ([aeiou])", r"an \1", expected.removeprefix("Value error, "))
    entry = f' "{shown(at)}"' if at else ""
    return f"{name}:{entry} {shown(expected, 160)}, received {_received(first['input'])}"


def _received(value: Any) -> str:
    """A value as JSON says it, cut."""
    if isinstance(value, str):
        return f'"{shown(value)}"'
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return shown(value)
