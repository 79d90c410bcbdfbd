"""Attributes of an HDF5 file's groups, each checked for what it should be."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from offline.documents import read_document, read_json
from offline.errors import InputError, shown

T = TypeVar("T")


def whole_number(attrs: Any, name: str, where: str) -> int | None:
    """A count, at least 0; None where there is no such attribute.

    Raises:
        InputError: it is no whole number, or out of range.
    """
    if (value := _value(attrs, name)) is None:
        return None
    if not isinstance(value, (int, np.integer)) or not 0 <= value < 2**40:
        raise _refusal(where, name, "a whole number, at least 0", value)
    return int(value)


def flag(attrs: Any, name: str, where: str) -> bool | None:
    """True or False, also as 1 or 0; None where there is no such attribute.

    Raises:
        InputError: it is something else.
    """
    if (value := _value(attrs, name)) is None:
        return None
    if not isinstance(value, (bool, int, float, np.bool_, np.number)) or value not in (0, 1):
        raise _refusal(where, name, "true or false (1 or 0)", value)
    return bool(value)


def words(attrs: Any, name: str, where: str) -> str | None:
    """Text; None where there is no such attribute.

    Raises:
        InputError: it is no text.
    """
    value = _value(attrs, name)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if value is None or isinstance(value, str):
        return value
    raise _refusal(where, name, "text", value)


def document(attrs: Any, name: str, where: str, kind: type[T]) -> T | None:
    """An attribute that holds JSON; None where there is none, or it holds null.

    Args:
        attrs: of a group.
        name: of the attribute.
        where: what errors call the group.
        kind: see `offline.documents.read_document`.

    Raises:
        InputError: it is not JSON, or not of that kind.
    """
    value = _value(attrs, name)
    if value is None:
        return None
    if not isinstance(value, (str, bytes)):
        raise _refusal(where, name, "JSON text", value)
    if value in ("null", b"null"):
        return None
    what = f'{where}: attribute "{name}"'
    if value[:1] in ('"', b'"'):  # some writers encode twice
        inner = read_json(value, what)
        value = inner if isinstance(inner, str) else value
    return read_document(value, kind, what)


def _value(attrs: Any, name: str) -> Any:
    """An attribute as it is stored; numpy's arrays of one entry and no axes are that entry."""
    if name not in attrs:
        return None
    value = attrs[name]
    return value[()] if isinstance(value, np.ndarray) and value.shape == () else value


def _refusal(where: str, name: str, expected: str, value: Any) -> InputError:
    return InputError(f'{where}: attribute "{name}" should be {expected}, received {shown(value)}')
