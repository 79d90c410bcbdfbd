"""Side trips that training does not notice: random states and module modes stay as they were."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

_LEAVES = (Tensor, np.ndarray, str, bytes, int, float, complex, type(None), type, ModuleType)


@contextmanager
def undisturbed(*things: Any) -> Iterator[None]:
    """Evaluation inside: every module in eval mode, nothing random moves on.

    Args:
        things: what is used inside, such as a policy. Every module and random generator that can
            be reached from them is put back as it was, and so are the global generators.
    """
    modules, generators = [], []
    for part in _reachable(things):
        if isinstance(part, nn.Module):
            modules.append((part, part.training))
        elif isinstance(part, (Generator, np.random.Generator, np.random.RandomState)):
            generators.append((part, _state(part)))
    everywhere = global_random_state()
    try:
        for module, _ in modules:
            module.training = False  # one by one: `eval` would recurse each time
        yield
    finally:
        for module, training in modules:
            module.training = training
        for generator, state in generators:
            _set_state(generator, state)
        set_global_random_state(everywhere)


def global_random_state() -> dict[str, Any]:
    """Of torch (with its CUDA devices), numpy and Python: a state tree."""
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_global_random_state(state: Mapping[str, Any]) -> None:
    """Take on what `global_random_state` returned."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        for device, saved in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(saved, device)


def seed_everything(seed: int) -> None:
    """Seed the global generators, for whatever draws from them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _reachable(things: Any) -> Iterator[Any]:
    """Every object that can be reached through attributes, containers, closures and methods."""
    stack, seen = [things], set()
    while stack:
        part = stack.pop()
        if isinstance(part, _LEAVES) or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, Mapping):
            stack.extend(part.values())
        elif isinstance(part, (list, tuple, set, frozenset)):
            stack.extend(part)
        elif isinstance(part, MethodType):
            stack += [part.__self__, part.__func__]
        elif isinstance(part, functools.partial):
            stack += [part.func, part.args, part.keywords]
        elif isinstance(part, FunctionType):
            stack.extend(cell.cell_contents for cell in part.__closure__ or () if _filled(cell))
        elif hasattr(part, "__dict__"):
            stack.extend(list(vars(part).values()))


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
