"""Lists the names of environments without making any.

"module:name" is the user's own: a class or function that makes it, or, as in gymnasium, an id that
importing the module registers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from offline.errors import InputError, did_you_mean
from robots.importing import import_object

METAWORLD = "metaworld/"
OGBENCH = "ogbench/"
ROBOSUITE = "robosuite/"


def check_env_name(name: str) -> None:
    """Check that `robots.envs.make.make_env` knows a name.

    Raises:
        InputError: what was probably meant, or which library is missing.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise _missing("gymnasium", name) from error
    if ":" in name:
        own_environment(name)
        return
    for prefix, names in FAMILIES.items():
        if name.startswith(prefix):
            library = prefix.rstrip("/")
            try:
                known = names()
            except ImportError as error:
                raise _missing(library, name) from error
            if name not in known:
                raise InputError(f'unknown {library} task "{name}".{did_you_mean(name, known)}')
            return
    # Cheapest first: with each library that is imported the registry grows.
    for register in (lambda: None, lambda: _register_robotics(gymnasium), _register_ogbench):
        register()
        if name in gymnasium.registry:
            return
    known = [id_ for id_ in gymnasium.registry if "/" not in id_]
    for names in FAMILIES.values():
        with contextlib.suppress(ImportError):
            known += names()
    hint = did_you_mean(name, known)
    if re.fullmatch(r"[A-Za-z_][\w.]*\.[A-Za-z_]\w*", name):  # package.module.Class
        hint = f' An environment of your own is "{":".join(name.rsplit(".", 1))}".'
    if hint.startswith(" Known"):  # a thousand names help nobody
        hint = (
            ' Names are "metaworld/<task>-v3", "ogbench/<id>", "robosuite/<Task>" and gymnasium '
            'ids such as "Hopper-v5"; one of your own is module:name.'
        )
    raise InputError(f'unknown environment "{name}".{hint}')


def own_environment(name: str) -> Callable[[], Any] | str:
    """What makes the environment "module:name", or the gymnasium id that the module registers.

    Raises:
        InputError: no such module, or it has neither an attribute nor an id of that name.
    """
    module, _, attribute = name.partition(":")
    if "-v" in attribute:
        import gymnasium

        import_object(f"{module}:__name__", what="an environment")
        if attribute in gymnasium.registry:
            return attribute
        raise InputError(
            f'{module} registers no environment "{attribute}".'
            f"{did_you_mean(attribute, (id_ for id_ in gymnasium.registry if '/' not in id_))}"
        )
    found = import_object(name, what="an environment")
    if not callable(found):
        raise InputError(
            f'"{name}" is a {type(found).__name__}, expected a class or function that makes an '
            "environment"
        )
    return found


def own_name(make: Callable[[], Any]) -> str:
    """The name of an environment that comes as what makes it: "module:name"."""
    module = getattr(make, "__module__", None) or type(make).__module__
    return f"{module}:{getattr(make, '__qualname__', type(make).__qualname__)}"


def is_ogbench(id_: str) -> bool:
    """Whether gymnasium knows this id, and knows it from OGBench."""
    import gymnasium

    spec = gymnasium.registry.get(id_)
    return spec is not None and str(spec.entry_point).startswith("ogbench.")


def _metaworld_names() -> list[str]:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return [METAWORLD + task for task in ALL_V3_ENVIRONMENTS]


def _ogbench_names() -> list[str]:
    import gymnasium
    import ogbench  # noqa: F401

    return [OGBENCH + id_ for id_ in gymnasium.registry if is_ogbench(id_)]


def _robosuite_names() -> list[str]:
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns of its own settings
    try:
        import robosuite
    finally:
        logging.disable(disabled)
    logging.getLogger("robosuite_logs").setLevel(logging.WARNING)
    return [ROBOSUITE + task for task in sorted(robosuite.ALL_ENVIRONMENTS)]


FAMILIES: dict[str, Callable[[], list[str]]] = {
    METAWORLD: _metaworld_names,
    OGBENCH: _ogbench_names,
    ROBOSUITE: _robosuite_names,
}


def _register_robotics(gymnasium: ModuleType) -> None:
    """Add Fetch, Adroit and the rest to the registry, where they are installed."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it prints release notes
            import gymnasium_robotics
    except ImportError:
        return
    gymnasium.register_envs(gymnasium_robotics)


def _register_ogbench() -> None:
    with contextlib.suppress(ImportError):
        import ogbench  # noqa: F401


def _missing(library: str, name: str) -> InputError:
    extra = "robosuite" if library == "robosuite" else "sim"
    return InputError(
        f'"{name}" needs {library}, which is not installed: pip install "genpol[{extra}]"'
    )
