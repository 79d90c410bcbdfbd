"""openpi's message format: msgpack, with numpy arrays as small maps.

The same bytes as `openpi_client.msgpack_numpy`, written anew for what arrives from strangers:

    array    {b"__ndarray__": True, b"data": C-order bytes, b"dtype": "<f4", b"shape": [2, 3]}
    scalar   {b"__npgeneric__": True, b"data": number, b"dtype": "<f4"}

Only bool, integer, float, bytes and text arrays travel. Objects, structured types and anything
pickled are refused, and an array must have exactly the bytes that its shape says.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from offline.errors import InputError, shown

try:
    import msgpack
except ImportError as error:  # pragma: no cover
    raise InputError('serving needs msgpack: pip install "genpol[serve]"') from error

MAX_MESSAGE_BYTES = 16 * 2**20
"""Default limit: five uncompressed 1024x1024 images, or over a hundred of 224x224."""

_KINDS = "biufSU"
_DTYPE = re.compile(r"[<>|=]?([biufSU])([1-9][0-9]{0,6})")  # never O (objects) or V (records)
_MAX_LIST = 100_000  # entries of one; numbers in bulk belong in an array
_MAX_ITEMS = 200_000  # entries of lists and maps: a byte each on the wire, dozens in memory
_MAX_DEPTH = 32  # lists and maps inside each other; Python's own limit is a thousand calls
_MAX_KEY = 200  # characters: names of nested maps are joined, for each of their entries


class WireError(InputError):
    """A frame that is not a message of this format."""


def one_line(error: BaseException, longest: int = 600) -> str:
    """What an error says, in one line of bounded length."""
    text = " ".join(str(error)[: 4 * longest].split())
    return shown(text, longest - 3) or type(error).__name__


def pack(message: Any) -> bytes:
    """A message (dicts, lists, numbers, text, numpy arrays) as bytes.

    Raises:
        WireError: it holds an object array, a complex number or another type that cannot travel.
    """
    try:
        return msgpack.packb(message, default=_pack_array)
    except WireError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"cannot be sent: {one_line(error)}") from error


def unpack(frame: bytes | str, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    """The message in a binary frame; its arrays are read-only views of the frame.

    Raises:
        WireError: the frame is text, too big, cut off, followed by other bytes, nested too deep,
            or an array in it is of a refused kind or does not have its shape's bytes.
    """
    if isinstance(frame, str):
        raise WireError("expected a binary msgpack frame, received a text frame")
    if len(frame) > max_bytes:
        raise WireError(
            f"the message has {len(frame)} bytes, the limit is {max_bytes}: send smaller images, "
            "or raise the server's --max-message-mb"
        )
    items = 0

    def count(values: Any) -> Any:
        nonlocal items
        items += 1 + len(values)
        if items > _MAX_ITEMS:
            raise WireError(f"more than {_MAX_ITEMS} entries: send numbers as an array")
        if isinstance(values, dict):
            for key in values:
                if isinstance(key, str | bytes) and len(key) > _MAX_KEY:
                    raise WireError(f"a key of {len(key)} characters, expected up to {_MAX_KEY}")
        return values

    try:
        message = msgpack.unpackb(
            frame,
            object_hook=lambda entry: _unpack_array(count(entry)),
            list_hook=count,
            ext_hook=_refuse,
            max_array_len=_MAX_LIST,
            max_map_len=_MAX_LIST,
        )
    except WireError:
        raise
    except Exception as error:  # msgpack's own kinds, and numpy's about shapes and dtypes
        reason = one_line(error, 160)
        raise WireError(f"malformed msgpack frame of {len(frame)} bytes: {reason}") from error
    level = [message] if isinstance(message, dict | list) else []
    for _ in range(_MAX_DEPTH):
        inside = [entry.values() if isinstance(entry, dict) else entry for entry in level]
        level = [one for entries in inside for one in entries if isinstance(one, dict | list)]
        if not level:
            return message
    raise WireError(f"lists and maps nested more than {_MAX_DEPTH} deep")


def unpack_map(frame: bytes | str, *, max_bytes: int = MAX_MESSAGE_BYTES) -> dict[str, Any]:
    """The message in a frame, which must be a map with text keys.

    Raises:
        WireError: as `unpack`, or it is something else.
    """
    message = unpack(frame, max_bytes=max_bytes)
    if not isinstance(message, dict):
        raise WireError(f"expected a map of observations, received {type(message).__name__}")
    for key in message:
        if not isinstance(key, str):
            raise WireError(f"expected text keys, received {shown(repr(key))}")
    return message


def _pack_array(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in _KINDS:
            raise WireError(f"arrays of dtype {value.dtype} cannot be sent")
        if isinstance(value, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": value.tobytes(),
                b"dtype": value.dtype.str,
                b"shape": value.shape,
            }
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise WireError(f"values of type {type(value).__name__} cannot be sent")


def _unpack_array(entry: dict[Any, Any]) -> Any:
    if b"__ndarray__" in entry:
        dtype, shape, data = _dtype(entry), entry.get(b"shape"), entry.get(b"data")
        if not isinstance(data, bytes) or not isinstance(shape, list | tuple):
            raise WireError("an array needs bytes and a shape")
        if len(shape) > 16 or not all(type(size) is int and size >= 0 for size in shape):
            raise WireError(f"an array cannot have the shape {shown(shape)}")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise WireError(
                f"an array of shape {shown(tuple(shape))} and dtype {dtype} takes "
                f"{math.prod(shape) * dtype.itemsize:.6g} bytes, received {len(data)}"
            )
        array = np.frombuffer(data, dtype).reshape(shape)
        if dtype.kind == "U":
            letters = np.frombuffer(data, np.dtype("u4").newbyteorder(dtype.byteorder))
            if ((letters > 0x10FFFF) | ((letters >= 0xD800) & (letters < 0xE000))).any():
                raise WireError("an array of text has bytes that are no text")
        return array if dtype.isnative else array.astype(dtype.newbyteorder("="))
    if b"__npgeneric__" in entry:
        dtype, number = _dtype(entry), entry.get(b"data")
        kinds = {"U": str, "S": bytes}.get(dtype.kind, bool | int | float)
        if not isinstance(number, kinds):
            raise WireError(f"a scalar of dtype {dtype} cannot be a {type(number).__name__}")
        return dtype.type(number)
    return entry


def _refuse(code: int, data: bytes) -> Any:
    raise WireError(f"msgpack extension {code} is refused")


def _dtype(entry: dict[Any, Any]) -> np.dtype:
    name = entry.get(b"dtype")
    # By pattern: numpy's own parser also takes records, objects and comma-separated lists.
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise WireError(f"arrays of dtype {shown(repr(name), 40)} are refused")
    return np.dtype(name)
