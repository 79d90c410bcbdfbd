"""The names that Octo's package expects of older libraries, while its code runs.

    jax.tree_map, jax.tree_leaves, jax.random.KeyArray     removed from JAX
    jnp.clip(x, a_min=, a_max=)                            now called min and max
    process_allgather on one process                       gained an axis
    tensorflow (io.gfile), dlimp, distrax                  Octo reads files and draws bins with them

What is missing is supplied for as long as Octo's code is imported, loaded or asked, and taken away
again. What is there is left alone. Of tensorflow and dlimp only names are supplied, beside
`io.gfile`: a checkpoint that computes with them says so when it does.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

_lock = threading.Lock()
_inside = 0
_supplied: list[tuple[Any, str, Any]] = []  # (owner, name, what was there)
_ABSENT = object()


@contextmanager
def old_names() -> Iterator[None]:
    """Supply what is missing inside. May be entered again, and by several threads."""
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            _supply()
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _take_away()


def _supply() -> None:
    for owner, name, value in _missing_attributes():
        _supplied.append((owner, name, vars(owner).get(name, _ABSENT)))
        setattr(owner, name, value)
    sys.modules.update(_missing_modules())


def _take_away() -> None:
    for name, module in _missing_modules().items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    while _supplied:
        owner, name, before = _supplied.pop()
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@cache
def _missing_attributes() -> list[tuple[Any, str, Any]]:
    """(owner, name, what is supplied) of what this JAX lacks or does otherwise."""
    missing: list[tuple[Any, str, Any]] = [
        (owner, name, value)
        for owner, name, value in (
            (jax, "tree_map", jax.tree_util.tree_map),
            (jax, "tree_leaves", jax.tree_util.tree_leaves),
            (jax.random, "KeyArray", jax.Array),
        )
        if not hasattr(owner, name)
    ]
    if "a_min" not in inspect.signature(jnp.clip).parameters:
        missing.append((jnp, "clip", _clip(jnp.clip)))
    gather = multihost_utils.process_allgather
    if jax.process_count() == 1 and np.shape(gather(np.zeros(2))) != (2,):
        missing.append((multihost_utils, "process_allgather", _on_one_process))
    return missing


def _clip(present: Callable[..., Any]) -> Callable[..., Any]:
    """`jnp.clip` that takes the old names of its bounds, too."""

    def clip(*arguments: Any, a_min: Any = None, a_max: Any = None, **named: Any) -> Any:
        bounds = {"min": a_min, "max": a_max}
        return present(*arguments, **{k: v for k, v in bounds.items() if v is not None}, **named)

    return clip


def _on_one_process(tree: Any, tiled: bool = False) -> Any:
    """What `process_allgather` gathered of one process: its own arrays."""
    return jax.tree_util.tree_map(np.asarray, tree)


@cache
def _missing_modules() -> dict[str, ModuleType]:
    """Stand-ins for the packages that are not installed, by name."""
    makers: dict[str, Callable[[], ModuleType]] = {
        "tensorflow": _tensorflow,
        "dlimp": lambda: _Names("dlimp"),
        "distrax": _distrax,
    }
    return {
        name: make()
        for name, make in makers.items()
        if name not in sys.modules and importlib.util.find_spec(name) is None
    }


class _Needed(type):
    """A name of a package that is not installed: an annotation may use it, nobody may call it."""

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        raise ImportError(f"{cls.__qualname__} is needed here: pip install {cls.__module__}")

    def __getattr__(cls, name: str) -> Any:
        return _named(name, cls)


def _named(name: str, owner: ModuleType | type) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    package = owner.__module__ if isinstance(owner, type) else owner.__name__
    prefix = owner.__qualname__ if isinstance(owner, type) else owner.__name__
    return _Needed(name, (), {"__module__": package, "__qualname__": f"{prefix}.{name}"})


class _Names(ModuleType):
    """A package of whose names only those that are set can be used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # whoever looks for the package asks for it

    def __getattr__(self, name: str) -> Any:
        return _named(name, self)


class _Files(ModuleType):
    """tensorflow.io.gfile of files on this machine."""

    GFile = staticmethod(open)
    join = staticmethod(os.path.join)
    exists = staticmethod(os.path.exists)
    isdir = staticmethod(os.path.isdir)
    listdir = staticmethod(os.listdir)

    @staticmethod
    def glob(pattern: str) -> list[str]:
        """Paths that match."""
        path = Path(pattern)
        return sorted(map(str, path.parent.glob(path.name)))

    @staticmethod
    def makedirs(path: str) -> None:
        """A folder and those above it."""
        os.makedirs(path, exist_ok=True)


def _tensorflow() -> ModuleType:
    found: Any = _Names("tensorflow")
    found.io = _Names("tensorflow.io")
    found.io.gfile = _Files("tensorflow.io.gfile")
    return found


def _distrax() -> ModuleType:
    found: Any = _Names("distrax")
    found.Categorical = _Categorical
    return found


class _Categorical:
    """distrax.Categorical as far as a head of bins draws from it."""

    def __init__(self, logits: Any) -> None:
        self.logits = logits

    def sample(self, *, seed: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """(*sample_shape, ...) indices of logits (..., bins)."""
        shape = (*sample_shape, *self.logits.shape[:-1])
        return jax.random.categorical(seed, self.logits, shape=shape)

    def mode(self) -> Any:
        """The most likely index."""
        return jnp.argmax(self.logits, axis=-1)
