"""Optimisers that go on: their state is checked before a step trips over it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], lr: float | None = None
) -> None:
    """`optimizer.load_state_dict(state)` of what such an Adam or AdamW has saved.

    PyTorch compares the number of parameters alone. Settings that a version did not have yet stay
    as they are.

    Args:
        optimizer: an Adam or AdamW.
        state: its `state_dict`.
        lr: to learn at from now on; default as before.

    Raises:
        ValueError: a setting is another kind of thing, or a moment has not its parameter's shape.
    """
    groups, present = [], optimizer.state_dict()["param_groups"]
    for own, saved in zip(present, state["param_groups"], strict=True):
        for key, value in own.items():
            if key in saved and not _alike(saved[key], value):
                raise ValueError(f'an optimiser\'s "{key}" is {str(saved[key])[:60]}')
        groups.append(own | {key: value for key, value in saved.items() if key in own})
    count = sum(len(group["params"]) for group in groups)
    for index, moments in state["state"].items():
        wrong = set(moments) != {"step", "exp_avg", "exp_avg_sq"}
        if wrong or type(index) is not int or not 0 <= index < count:
            raise ValueError("an optimiser's moments are of other parameters")
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    for group in optimizer.param_groups if lr is not None else ():
        group["lr"] = lr
    for parameter, moments in optimizer.state.items():
        shapes = [moments["step"].shape, moments["exp_avg"].shape, moments["exp_avg_sq"].shape]
        if shapes != [torch.Size(()), parameter.shape, parameter.shape]:
            raise ValueError("an optimiser's moments have not the shape of their parameters")


def _alike(saved: Any, own: Any) -> bool:
    """Whether a setting could be the other one with another number."""
    if isinstance(own, (tuple, list)):
        return type(saved) is type(own) and [*map(type, saved)] == [*map(type, own)]
    if isinstance(own, (int, float)) and not isinstance(own, bool):
        number = isinstance(saved, (int, float)) and not isinstance(saved, bool)
        return number and math.isfinite(saved) and saved >= 0
    return saved is None or isinstance(saved, bool) if own is None else type(saved) is type(own)
