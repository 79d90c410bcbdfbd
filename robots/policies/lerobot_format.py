"""Renames our observations to LeRobot's keys, and reads a LeRobot checkpoint's action spec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offline.errors import InputError
from offline.naming import match_names
from offline.spec import ActionSpec
from offline.types import Obs

STATE, IMAGE, IMAGES = "observation.state", "observation.image", "observation.images"


def rename(obs: Obs, expected: Sequence[str], keys: dict[str, str]) -> dict[str, Tensor]:
    """Our observation under LeRobot's keys; images become floats (B, 3, height, width) in [0, 1].

    A key takes what `keys` names, else what has its name up to prefix and separators (see
    `offline.naming`): "state" feeds observation.state, an image "x" or "images.x"
    observation.images.x. Else observation.state takes all vectors in sorted key order, and any
    image takes the only camera.

    Args:
        obs: ours, each (B, ...).
        expected: the policy's keys; all of ours, renamed, when empty.
        keys: LeRobot's key -> ours.

    Raises:
        InputError: names the key that nothing of ours feeds, or several things could.
    """
    images = [key for key, value in obs.items() if value.dtype == torch.uint8]
    numbers = sorted(key for key, value in obs.items() if value.ndim == 2 and key != "language")
    if not expected:
        theirs = {_their_key(key, key in images): None for key in [*images, *numbers]}
        expected = [*theirs, *([STATE] if numbers and STATE not in theirs else [])]
    found: dict[str, str] = {}
    for kind, example in ((images, f"{IMAGES}.NAME"), (numbers, "observation.NAME")):
        wanted = [k for k in expected if k not in keys and k.startswith(IMAGE) == (kind is images)]
        found |= match_names(wanted, kind, f"say which with lerobot:DIR?{example}=KEY")
    renamed = {}
    for key in expected:
        name = keys.get(key, found.get(key))
        sources = None if name is None else [name]
        if sources is None and key == STATE and numbers:
            sources = numbers
        if sources is None and key.startswith(IMAGE) and len(images) == 1:
            sources = images
        if not sources or any(source not in obs for source in sources):
            raise InputError(
                f'the policy needs "{key}", the environment observes {", ".join(obs)}: say which '
                f"with lerobot:DIR?{key}=KEY"
            )
        if sources[0] in images:
            renamed[key] = obs[sources[0]].permute(0, 3, 1, 2).float() / 255
        else:
            renamed[key] = torch.cat([obs[source].float() for source in sources], dim=-1)
    return renamed


def full_key(key: str) -> str:
    """LeRobot's key from an option that may leave out its prefix: "top", "state"."""
    if key.startswith("observation."):
        return key
    known = ("state", "environment_state", "image", "images")
    return f"observation.{key}" if key.split(".")[0] in known else f"{IMAGES}.{key}"


def spec_of_statistics(postprocess: Any) -> ActionSpec:
    """Bounds that a post-processor un-normalises with, in its dataset's units.

    Raises:
        InputError: it has none.
    """
    for step in getattr(postprocess, "steps", ()):
        stats = (getattr(step, "stats", None) or {}).get("action", {})
        if "min" in stats and "max" in stats:
            low, high = (np.asarray(stats[key], float).ravel() for key in ("min", "max"))
            return ActionSpec.from_bounds(low, high)
    raise InputError("this LeRobot policy does not say its actions' bounds: name --env")


def tile(value: Any, rows: int, n: int) -> Any:
    """Each of B rows n times in a row; what has no rows stays as it is."""
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == rows:
        return value.repeat_interleave(n, dim=0)
    if isinstance(value, list) and len(value) == rows:
        return [item for item in value for _ in range(n)]
    return value


def _their_key(key: str, image: bool) -> str:
    if key.startswith("observation."):
        return key
    return f"{IMAGES}.{key.removeprefix('images.')}" if image else f"observation.{key}"
