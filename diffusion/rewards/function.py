"""`module:function`: a reward, or an objective, of the user's own, imported by name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from diffusion.errors import InputError, did_you_mean


def load_function(name: str, *, what: str = "Reward") -> Callable[..., Any]:
    """Import "module:function"; the working directory is searched first, as by `python -m`.

    A reward takes images (B, 3, H, W) float in [0, 1] and B prompts, and returns B numbers.
    `what` it is for is said in errors.
    Raises InputError where the module or the function is missing or cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise InputError(
                f'{what} "{name}": no module "{error.name}" in {folder} or among installed '
                f"packages. Run from the folder that holds it, or add that to PYTHONPATH."
            ) from error
        raise _broken(what, name, module_name, error) from error
    except Exception as error:
        raise _broken(what, name, module_name, error) from error
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [key for key, value in vars(found).items() if callable(value)]
            hint = did_you_mean(part, public) if public else ""
            raise InputError(f'{what} "{name}": {module_name} has no "{part}".{hint}')
        found = getattr(found, part)
    if not callable(found):
        raise InputError(
            f'{what} "{name}": expected a function, but {attribute} is a {type(found).__name__}.'
        )
    return found


def _broken(what: str, name: str, module: str, error: Exception) -> InputError:
    text = " ".join(str(error).split())
    return InputError(
        f'{what} "{name}": importing {module} raised {type(error).__name__}: {text[:200]}. '
        f'See it whole with: python -c "import {module}"'
    )
