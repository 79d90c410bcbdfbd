"""Reads a robomimic checkpoint file and the units of its actions."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offline.errors import InputError
from offline.spec import ActionSpec


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's dictionary; code in it is run only if it cannot be read without."""
    try:
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            saved = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # whatever a broken archive or pickle raises
        raise InputError(
            f"expected a robomimic checkpoint in {path}, reading it failed "
            f"({in_one_line(error)}): was it cut off?"
        ) from error
    if not isinstance(saved, dict) or not {"algo_name", "config", "shape_metadata"} <= set(saved):
        raise InputError(
            f"expected a robomimic checkpoint in {path}, with algo_name, config and "
            "shape_metadata: was it saved by another library?"
        )
    return saved


def action_affine(algo: Any, stats: dict[str, Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """offset and scale (D,), so that action * scale + offset is in the environment's units."""
    if not stats:
        return np.zeros(algo.ac_dim, np.float32), np.ones(algo.ac_dim, np.float32)
    train = algo.global_config.train
    keys = list(train.get("action_keys") or stats)
    for key in keys:
        form = ((train.get("action_config") or {}).get(key) or {}).get("format")
        if form == "rot_6d":
            raise InputError(
                f'the robomimic policy gives "{key}" as a 6-D rotation, which only robomimic '
                "converts for the environment: train it on the environment's own actions"
            )
    offset, scale = (
        np.concatenate([np.asarray(stats[key][s], np.float32).reshape(-1) for key in keys])
        for s in ("offset", "scale")
    )
    return offset, scale


def fitting_spec(
    offset: np.ndarray,
    scale: np.ndarray,
    env_spec: ActionSpec | None,
    action_chunk: int | None,
    horizon: int | None,
) -> ActionSpec:
    """The spec of a network with D outputs in its actions.

    Args:
        offset, scale: (D,) from the network's units to the environment's.
        env_spec: the environment's actions, where known.
        action_chunk: H, where D is H actions flattened into one.
        horizon: actions in a trajectory of D numbers each (diffusion); None for other networks.

    Raises:
        InputError: the numbers do not fit together.
    """
    size = len(offset)
    if horizon is not None:
        if action_chunk not in (None, horizon):
            raise InputError(
                f"the robomimic policy gives {horizon} actions at once, received --action-chunk "
                f"{action_chunk}: leave it out"
            )
        action_chunk = 1
    dim = env_spec.dim if env_spec else size // (action_chunk or 1)
    chunk = action_chunk or max(size // dim, 1)
    if dim * chunk != size:
        raise InputError(
            f"the robomimic policy gives {size} numbers, expected H={chunk} actions of A={dim}: "
            "is it of another environment, or trained with another --action-chunk?"
        )
    if env_spec is None:
        env_spec = ActionSpec.from_bounds((offset - scale)[:dim], (offset + scale)[:dim])
    return env_spec.with_chunk(horizon or chunk)


def in_one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
