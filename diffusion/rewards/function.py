"""`module:function`: a reward, or an objective, of the user's own, imported by name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from diffusion.errors import InputError, did_you_mean, shown


def load_function(name: str, *, what: str = "Reward") -> Callable[..., Any]:
    """Import "module:function"; the working directory is searched first, as by `python -m`.

    A reward takes images (B, 3, H, W) float in [0, 1] and B prompts, and returns B numbers.
    `what` it is for is said in errors.
    Raises InputError where the module or the function is missing or cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    name = shown(name)
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise InputError(
                f'{what} "{name}": no module "{shown(error.name)}" in {folder} or among installed '
                f"packages. Run from the folder that holds it, or add that to PYTHONPATH."
            ) from error
        raise _broken(what, name, module_name, error) from error
    except (Exception, SystemExit) as error:  # a script that leaves when it is imported
        raise _broken(what, name, module_name, error) from error
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            members = getattr(found, "__dict__", {})
            public = [key for key, value in members.items() if callable(value)]
            hint = did_you_mean(part, public) if public else ""
            raise InputError(f'{what} "{name}": {shown(module_name)} has no "{shown(part)}".{hint}')
        found = getattr(found, part)
    if not callable(found):
        raise InputError(
            f'{what} "{name}": expected a function, but {shown(attribute)} is a '
            f"{type(found).__name__}."
        )
    return found


def _broken(what: str, name: str, module: str, error: BaseException) -> InputError:
    module, kind = shown(module), type(error).__name__
    return InputError(
        f'{what} "{name}": importing {module} raised {kind}: {shown(error, 200)}. '
        f'See it whole with: python -c "import {module}"'
    )
