"""Checks of settings: numbers against their annotated ranges, and whatever else a setting needs.

A field says its range where it is declared, with annotated_types:

    lr: Annotated[float, Gt(0)] = 3e-4
    epochs: Annotated[int, Ge(1)] | None = None

and `check_numbers` holds every field to it. Floats have to be finite whatever their range.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from offline.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_LONGEST = 80  # characters of a received value that a message repeats


def check_numbers(config: DataclassInstance) -> None:
    """Check every number of a dataclass of settings, by its annotation.

    Raises:
        InputError: a number that is not finite, of another kind, or out of its range; names the
            option as it is written on the command line.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    hints = _hints(type(config))
    numeric: dict[str, Any] = {
        f.name: (hints[f.name], ...) for f in fields(config) if _has_number(hints[f.name])
    }
    rules = ConfigDict(allow_inf_nan=False, strict=False, arbitrary_types_allowed=True)
    model = create_model("Numbers", __config__=rules, **numeric)
    try:
        model.model_validate({name: getattr(config, name) for name in numeric})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise InputError(f"{flag} must be {_expected(first)}, received {_shown(first)}") from None


def require(config: object, name: str, good: bool, expected: str) -> None:
    """Check one option against a rule that no annotation can say.

    Raises:
        InputError: not `good`; names the option as it is written on the command line, what was
            expected, and what came.
    """
    if not good:
        flag = f"--{name.replace('_', '-')}"
        raise InputError(f"{flag} must be {expected}, received {getattr(config, name)}")


def _hints(kind: type) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(kind, include_extras=True)


def _has_number(hint: Any) -> bool:
    from typing import get_args

    if hint in (int, float):
        return True
    # Not the values of a Literal: those are no types.
    return any(_has_number(part) for part in get_args(hint) if not isinstance(part, str))


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
        return f"{words} {error['ctx'][key]:g}"
    if error["type"] == "finite_number":
        return "a finite number"
    if error["type"].startswith("int"):
        return "a whole number"
    if error["type"].startswith("float"):
        return "a number"
    return str(error["msg"])


def _shown(error: Any) -> str:
    text = str(error["input"])
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
