"""Checks of settings: numbers against their annotated ranges, and whatever else a setting needs.

A field says its range where it is declared, with annotated_types or a name of `offline.ranges`:

    lr: Annotated[float, Gt(0)] = 3e-4
    epochs: Count | None = None

and `check_numbers` holds every field to it. Floats have to be finite whatever their range.
"""

from __future__ import annotations

import numbers
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from offline.errors import InputError, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def check_numbers(config: DataclassInstance) -> None:
    """Check every number of a dataclass of settings, by its annotation.

    Raises:
        InputError: a number that is not finite, of another kind, or out of its range; names the
            option as it is written on the command line.
    """
    numeric = numeric_fields(type(config))
    if not numeric:
        return
    from pydantic import ValidationError

    values = {name: _plain(getattr(config, name)) for name in numeric}
    try:
        _model(type(config)).model_validate(values)
    except ValidationError as error:
        first = _foremost(error.errors(include_url=False))
        flag = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise InputError(
            f"{flag} must be {_expected(first)}, received {shown(first['input'])}"
        ) from None


def require(config: object, name: str, good: bool, expected: str) -> None:
    """Check one option against a rule that no annotation can say.

    Raises:
        InputError: not `good`; names the option as it is written on the command line, what was
            expected, and what came.
    """
    if not good:
        flag = f"--{name.replace('_', '-')}"
        received = shown(getattr(config, name))
        raise InputError(f"{flag} must be {expected}, received {received}")


@cache
def numeric_fields(kind: type[DataclassInstance]) -> dict[str, Any]:
    """The fields of a dataclass that are, or hold, numbers, with their annotations."""
    from typing import get_type_hints

    hints = get_type_hints(kind, include_extras=True)
    return {f.name: hints[f.name] for f in fields(kind) if _has_number(hints[f.name])}


@cache
def _model(kind: type[DataclassInstance]) -> Any:
    """What pydantic makes of the numeric fields. Strict: text is no number, and True is not 1."""
    from pydantic import ConfigDict, create_model

    rules = ConfigDict(allow_inf_nan=False, strict=True)
    wanted: dict[str, Any] = {name: (hint, ...) for name, hint in numeric_fields(kind).items()}
    return create_model("Numbers", __config__=rules, **wanted)


def _has_number(hint: Any) -> bool:
    if hint in (int, float):
        return True
    # Not the values of a Literal: those are no types.
    return get_origin(hint) is not Literal and any(map(_has_number, get_args(hint)))


def _plain(value: Any) -> Any:
    """Python's own number for one of numpy's, and a tuple for a list, as Python programs pass."""
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _foremost(errors: list[Any]) -> Any:
    """The error to tell: of a number that may be None or text, the one about the number."""
    option = errors[0]["loc"][0]
    about = [error for error in errors if error["loc"][0] == option]
    return next((error for error in about if error["type"] not in _OTHER_KINDS), about[0])


_OTHER_KINDS = ("none_required", "string_type", "literal_error")


def _expected(error: Any) -> str:
    """In words: "above 0", "at least 1", "a finite number"."""
    bounds = {
        "greater_than": ("above", "gt"),
        "greater_than_equal": ("at least", "ge"),
        "less_than": ("below", "lt"),
        "less_than_equal": ("at most", "le"),
    }
    if error["type"] in bounds:
        words, key = bounds[error["type"]]
        return f"{words} {_bound(error['ctx'][key])}"
    if error["type"] == "finite_number":
        return "a finite number"
    if error["type"].startswith("int"):
        return "a whole number"
    if error["type"].startswith("float"):
        return "a number"
    if error["type"].startswith("tuple"):
        return "several numbers"
    if error["type"] in ("too_short", "missing"):  # of a tuple of a fixed length
        return "more numbers"
    return "fewer numbers" if error["type"] == "too_long" else str(error["msg"])


def _bound(bound: float) -> str:
    """A limit in full, but for powers of two that nobody reads in full."""
    if isinstance(bound, int) and bound >= 2**31 and bound & (bound - 1) == 0:
        return f"2^{bound.bit_length() - 1}"
    return f"{bound:.12g}"
