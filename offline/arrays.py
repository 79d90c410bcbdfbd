"""Checks an array where it enters: its kind, its shape, and whether it is finite."""

from __future__ import annotations

from typing import Any

import numpy as np

from offline.errors import InputError, shown

Shape = tuple[int | None, ...]
"""Of each axis its length; None is any."""

_KINDS = {
    "c": "complex numbers", "S": "text", "U": "text", "T": "text", "M": "dates", "m": "durations",
    "O": "objects (text, or rows of different lengths)", "V": "records",
}  # fmt: skip


def check_array(
    values: Any, where: str, name: str, *, shape: Shape | None = None, finite: bool = True
) -> np.ndarray:
    """The array, if it holds numbers (truth values count) of a shape; else an error that says why.

    Args:
        values: what should be an array.
        where: what it is part of, such as '"demos.hdf5" demo_3'.
        name: which of the arrays there.
        shape: what its axes must be.
        finite: refuse NaN, and numbers that are infinite as float32.

    Raises:
        InputError: it is no array, or of another kind or shape, or not finite.
    """
    if not isinstance(values, np.ndarray):
        raise InputError(
            f'{where}: "{shown(name)}" is {_an(type(values).__name__)}, expected an array of '
            "numbers"
        )
    check_kind(values.dtype, where, name)
    if shape is not None:
        check_shape(values.shape, where, name, shape)
    if finite and values.dtype.kind == "f" and not is_finite(values):
        raise InputError(f'{where}: "{shown(name)}" has NaN or infinite values')
    return values


def check_kind(dtype: np.dtype, where: str, name: str) -> None:
    """Check that a dtype is one of numbers.

    Raises:
        InputError: it is of text, complex numbers, records ...
    """
    if dtype.kind not in "fiub":
        kind = _KINDS.get(dtype.kind, shown(str(dtype)))
        raise InputError(f'{where}: "{shown(name)}" holds {kind}, expected numbers')


def check_shape(received: tuple[int, ...], where: str, name: str, shape: Shape) -> None:
    """Check a shape.

    Raises:
        InputError: another number of axes, or an axis of another length.
    """
    fits = len(received) == len(shape) and all(
        wanted is None or size == wanted for size, wanted in zip(received, shape, strict=True)
    )
    if not fits:
        raise InputError(
            f'{where}: "{shown(name)}" has shape {shown(received)}, expected {_text(shape)}'
        )


def is_finite(values: np.ndarray) -> bool:
    """Whether all numbers are finite as float32, which is what everything is computed in."""
    return bool(np.isfinite(single(values)).all())


def single(values: np.ndarray) -> np.ndarray:
    """As float32; what is too large becomes infinite, and is refused where it is checked."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def _text(shape: Shape) -> str:
    entries = ["any" if size is None else str(size) for size in shape]
    return "(" + ", ".join(entries) + ("," if len(entries) == 1 else "") + ")"


def _an(word: str) -> str:
    return f"an {word}" if word[:1].lower() in "aeiou" else f"a {word}"
