"""`--resume`: the options of the run that goes on, checked against those given beside it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from genpol.runs.run import read_config
from offline.documents import as_document
from offline.errors import InputError, shown
from offline.option_check import check_numbers

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def restored(
    config: Options, command: str, changeable: Collection[str]
) -> tuple[Options, dict[str, Any]]:
    """The options of the run in `config.resume`, and all that its config.json holds.

    Args:
        config: as given; an option at its default counts as not given.
        command: whose run it must be.
        changeable: options that may differ from the run's.

    Raises:
        InputError: no such run, an option given beside --resume differs from the run's, or one
            that config.json holds is of another type or out of range.
    """
    folder = Path(config.resume)  # type: ignore[attr-defined]
    stored = read_config(folder, command)
    values, hints = {}, get_type_hints(type(config), include_extras=True)
    for f in fields(config):
        default = f.default if f.default is not MISSING else None
        own = getattr(config, f.name) == stored.get(f.name)  # such as the name of an object given
        said = _several(stored.get(f.name, default), hints[f.name])
        if f.name in stored and not own:
            as_document(said, hints[f.name], f'{folder / "config.json"}: "{f.name}"')
        values[f.name] = saved = _as_typed(said, default)
        given = getattr(config, f.name)
        if f.name in ("output", "resume") or given == default:
            continue
        if f.name in changeable:
            values[f.name] = given
        elif given != saved:
            flag = f"--{f.name.replace('_', '-')}"
            raise InputError(
                f'{flag} {_shown(given)} differs from {_shown(saved)} of the run "{folder}"; '
                f"drop {flag} to resume it, or start a new run with another --output"
            )
    values["output"], values["resume"] = folder, folder
    options = type(config)(**values)
    try:
        check_numbers(options)
    except InputError as error:  # of what was given, `parse` has said it
        raise type(error)(f"{folder / 'config.json'}: {error}") from None
    return options, stored


def _as_typed(value: Any, default: Any) -> Any:
    """JSON has no tuples and no paths."""
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if isinstance(default, Path) and isinstance(value, str) else value


def _several(value: Any, hint: Any) -> Any:
    """One text as a list of one, where an option takes several texts: a dataset's name, which
    stands alone in config.json."""
    if get_origin(hint) is not tuple or get_args(hint)[:1] != (str,):
        return value
    return [] if value is None else [value] if isinstance(value, str) else value


def _shown(value: Any) -> str:
    return shown(" ".join(map(str, value)) if isinstance(value, tuple) else value)
