"""Chooses the steps held out of a model's training; the choice never changes as the table grows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from offline.errors import InputError

HELD_ROWS = 5_000  # the most that are looked at; more would tell the same


def split_rows(keys: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Rows to train on, and `HELD_ROWS` or fewer that are held out, by a hash of their keys.

    Whatever comes beside it, a step is held out for as long as it lives, or never. What else could
    be held out is used for neither.

    Args:
        keys: (N,) whole numbers.
        share: of the steps that are held out.

    Raises:
        InputError: nothing to train on, or nothing held out.
    """
    hashed = _hash(keys.cpu().numpy())
    held = hashed < share
    train, test = np.flatnonzero(~held), np.flatnonzero(held)
    if not len(train) or not len(test):
        raise InputError(
            f"{len(keys)} steps are too few to train a world model and hold out {share:g} of them: "
            "collect more before it, with --update-after"
        )
    test = test[np.argsort(hashed[test], kind="stable")[:HELD_ROWS]]
    return torch.from_numpy(train), torch.from_numpy(test)


def _hash(keys: np.ndarray) -> np.ndarray:
    """Whole numbers (N,) -> pseudorandom numbers in [0, 1): SplitMix64's finaliser."""
    x = keys.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).astype(np.float64) / 2.0**64
