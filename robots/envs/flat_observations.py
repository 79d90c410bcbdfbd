"""Observations of gymnasium environments as flat dictionaries of float32 vectors and images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

from offline.errors import InputError

Obs = dict[str, np.ndarray]
Spaces = dict[str, gymnasium.Space]


def flat_spaces(name: str, space: gymnasium.Space) -> Spaces:
    """The spaces of `flat_observation`, float32 whatever precision the simulator has.

    Args:
        name: of the environment, for messages.
        space: a box, called "state" (or "image", if it is one); or a dictionary, whose keys stay,
            nested ones joined by "_": {"achieved_goal": {"slide cabinet": ...}} is
            "achieved_goal_slide_cabinet".

    Raises:
        InputError: something that is no array, or two keys that would become one.
    """
    found: Spaces = {}
    for key, part in _walk(space, gymnasium.spaces.Dict):
        if not isinstance(part, gymnasium.spaces.Box):
            raise InputError(f'"{name}" observes {key or "its state"} as {part}; arrays are needed')
        is_image = part.dtype == np.uint8
        key = key or ("image" if is_image and len(part.shape) == 3 else "state")
        if key in found:
            raise InputError(f'"{name}" observes "{key}" twice once its keys are joined by "_"')
        if not is_image:
            low, high = part.low.astype(np.float32), part.high.astype(np.float32)
            part = gymnasium.spaces.Box(low, high, dtype=np.float32)
        found[key] = part
    return found


def flat_observation(obs: Any, spaces: Spaces) -> Obs:
    """An observation by the keys of `spaces`; copies, as some simulators reuse their buffers."""
    only = next(iter(spaces))  # of a bare array, which has no key
    parts = {key or only: value for key, value in _walk(obs, dict)}
    return {key: np.array(parts[key], dtype=space.dtype) for key, space in spaces.items()}


def _walk(tree: Any, kind: type[Any], key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, kind):
        yield key, tree
        return
    for name, part in tree.items():
        name = str(name).replace(" ", "_")
        yield from _walk(part, kind, f"{key}_{name}" if key else name)
