"""Parts of a pipeline that wait in the machine's memory, and are on the GPU only while called.

    encoders   everything but the denoiser and the autoencoder; called once an epoch
    vae        the autoencoder; called once an epoch
    rewards    the networks that rewards hold; called once an epoch

Copying takes about a second for 10 GB. The trained network and its reference stay where they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import torch

from diffusion.errors import InputError, did_you_mean, shown

PARTS = ("encoders", "vae", "rewards")
DEEPEST = 8  # attributes of attributes in which networks are looked for
_NO_HOLDERS = (str, bytes, torch.Tensor, type, ModuleType)


def parse_offload(text: str) -> frozenset[str]:
    """The parts that --offload names: some of PARTS, "all" or "none".

    Raises:
        InputError: another name.
    """
    names = [name.strip() for name in text.split(",")]
    if names in (["none"], ["all"]):
        return frozenset(PARTS if names == ["all"] else ())
    for name in names:
        if name not in PARTS:
            raise InputError(
                f"--offload {shown(text)}: expected none, all, or some of {', '.join(PARTS)}, "
                f'separated by commas; "{shown(name)}" is none of them.{did_you_mean(name, PARTS)}'
            )
    return frozenset(names)


class Offload:
    """What waits in the machine's memory, beside networks on `device`; on a CPU nothing moves."""

    def __init__(self, parts: Iterable[str], device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.parts = frozenset(parts) if self.device.type != "cpu" else frozenset()

    def rest(self, part: str, modules: Iterable[torch.nn.Module]) -> None:
        """Put the networks of a part where they wait, if it is one that does."""
        if part in self.parts:
            for module in modules:
                module.to("cpu")

    @contextmanager
    def called(self, part: str, modules: Iterable[torch.nn.Module]) -> Iterator[None]:
        """Within this context the networks of a part are on the device."""
        moved = list(modules) if part in self.parts else []
        try:
            for module in moved:
                module.to(self.device)
            yield
        finally:
            for module in moved:
                module.to("cpu")
            if moved:
                from accelerate.utils.memory import clear_device_cache

                clear_device_cache()

    def reward(self, function: Any) -> Any:
        """A `Reward` whose networks are moved around its calls; others, and on a CPU all, as they
        are. A network that nothing of it holds, such as a global one, stays where it is."""
        if "rewards" not in self.parts or not hasattr(function, "around"):
            return function
        modules = networks_in(function)
        self.rest("rewards", modules)

        def around() -> AbstractContextManager[None]:
            return self.called("rewards", modules)

        return function.moving(around)


def networks_in(thing: Any) -> list[torch.nn.Module]:
    """The networks that an object, a bound or partial function, or a closure holds."""
    found: dict[int, torch.nn.Module] = {}
    seen: set[int] = set()

    def look(one: Any, depth: int) -> None:
        if isinstance(one, torch.nn.Module):
            found[id(one)] = one
            return
        if depth == 0 or id(one) in seen or isinstance(one, _NO_HOLDERS):
            return
        seen.add(id(one))
        for inside in _inside(one):
            look(inside, depth - 1)

    look(thing, DEEPEST)
    return list(found.values())


def _inside(one: Any) -> list[Any]:
    if isinstance(one, dict):
        return list(one.values())
    if isinstance(one, list | tuple | set | frozenset):
        return list(one)
    if isinstance(one, functools.partial):
        return [one.func, *one.args, *one.keywords.values()]
    inside = [getattr(one, "__self__", None)]
    for cell in getattr(one, "__closure__", None) or ():
        try:
            inside.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    if getattr(type(one), "__module__", "") != "builtins" or callable(one):
        inside += list(getattr(one, "__dict__", {}).values())
    return inside
