"""Probes which arguments an Octo model's action head honours.

Octo's heads accept every argument silently: an MSE or L1 head answers K copies of one action, a
UNet head ignores `sample_shape` and answers every step of the window, and only discrete heads heed
`argmax`. So the head is probed once, on zeros, when the model is wrapped.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np

from offline.errors import InputError
from robots.importing import one_line
from robots.policies.octo_format import NOT_INPUTS, Observations


@dataclass(frozen=True)
class Head:
    """What a model's action head does when it is asked, found by asking."""

    horizon: int
    dim: int
    """Of its output; statistics may cover fewer."""
    samples: bool
    """It answers `sample_shape=(K,)` with K different proposals (K, B, H, A)."""
    window: bool
    """It answers every step of the window, (B, W, H, A): the last one counts."""
    deterministic: bool
    """Two random keys give one action."""
    argmax: bool
    """`argmax=True` gives an action that does not depend on the random key."""


def probe(
    model: Any,
    observations: Observations,
    language: str,
    window: int,
    keys: tuple[Any, Any],
    options: dict[str, Any],
) -> Head:
    """Find out what the head honours: one row of zeros, two random keys.

    Args:
        model: has `create_tasks` and `sample_actions`.
        observations: the model's keys and masks.
        language: an instruction.
        window: steps of history that will be given.
        keys: two different JAX random keys.
        options: arguments of every `sample_actions`.

    Raises:
        InputError: the output is neither (B, H, A) nor (K, B, H, A).
    """
    batch: dict[str, Any] = {
        key: np.zeros((1, window, *np.shape(value)[2:]), np.asarray(value).dtype)
        for key, value in observations.example.items()
        if key not in NOT_INPUTS
    }
    batch |= observations.masks(batch, np.ones((1, window), bool))
    task = create_task(model, language)
    first, second = keys
    takes = inspect.signature(model.sample_actions).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())

    def ask(key: Any, **more: Any) -> np.ndarray:
        return call(model, batch, task, key, {**options, **more})

    one = ask(first)
    windowed = one.ndim == 4 and one.shape[:2] == (1, window)
    if not windowed and not (one.ndim == 3 and one.shape[0] == 1):
        raise InputError(
            f"sample_actions returned shape {one.shape} for B=1, expected (B, H, A) or, with "
            "sample_shape=(K,), (K, B, H, A): is this an Octo model?"
        )
    samples = argmax = False
    if anything or "sample_shape" in takes:
        two = ask(first, sample_shape=(2,))
        samples = not windowed and two.shape == (2, *one.shape) and not np.array_equal(*two)
    if anything or "argmax" in takes:
        argmax = np.array_equal(ask(first, argmax=True), ask(second, argmax=True))
    return Head(
        horizon=one.shape[-2],
        dim=one.shape[-1],
        samples=samples,
        window=windowed,
        deterministic=not samples and np.array_equal(one, ask(second)),
        argmax=argmax,
    )


def create_task(model: Any, language: str) -> Any:
    """The instruction as the model takes it, for one row.

    Raises:
        InputError: the model takes none.
    """
    try:
        return model.create_tasks(texts=[language])
    except Exception as error:
        raise InputError(
            f'the Octo model takes no instruction "{language}": {one_line(error)}; models that '
            "take goal images only cannot be steered here"
        ) from error


def call(model: Any, batch: Any, task: Any, key: Any, options: dict[str, Any]) -> np.ndarray:
    """`sample_actions` as numpy.

    Raises:
        InputError: it failed; says what it was given.
    """
    try:
        return np.asarray(model.sample_actions(batch, task, rng=key, **options))
    except Exception as error:
        shapes = ", ".join(f"{k} {v.shape}" for k, v in batch.items() if hasattr(v, "shape"))
        raise InputError(f"sample_actions failed: {one_line(error)} (given {shapes})") from error
