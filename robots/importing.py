"""Imports objects by names such as `package.module:object` from the command line."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from offline.errors import InputError, did_you_mean


def import_object(text: str, *, what: str) -> Any:
    """The object that "package.module:object" names; the current folder is searched first.

    Args:
        text: module and attribute, the attribute may be dotted.
        what: what it is for, such as "a policy", in messages.

    Raises:
        InputError: not of that form, no such module or attribute, or the module fails to import.
    """
    module_name, separator, path = text.partition(":")
    if not (module_name and separator and path):
        raise InputError(f'expected {what} as "package.module:name", received "{text}"')
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's own module raises
        raise InputError(
            f'{what} "{text}": module {module_name} does not import: {one_line(error)} '
            f"(searched from {here})"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            names = [known for known in vars(found) if not known.startswith("_")]
            raise InputError(f'{what} "{text}": there is no "{name}".{did_you_mean(name, names)}')
        found = getattr(found, name)
    return found


def one_line(error: BaseException) -> str:
    """An error as "Type: first line of its message", for use inside a one-line message."""
    first = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
