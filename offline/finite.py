"""What is not finite is never written over what is, and never used: the guard of all weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from offline.errors import Diverged, InputError

LOWER = "Lower --lr, --base-lr or --utd, or scale the reward down (--reward-scale)"


def require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Check weights, averages and an optimiser's state before they are written.

    Args:
        tensors: by name; whole numbers and booleans among them pass.
        what: whose they are, for the message.

    Raises:
        Diverged: names the first tensor with NaN or infinite values.
    """
    if (name := not_finite(tensors)) is not None:
        raise Diverged(
            f"{what} is not saved: {name} has NaN or infinite values, so training has diverged; "
            "what was saved before stays as it is"
        )


def require_loaded_finite(tensors: Mapping[str, Tensor], where: object) -> None:
    """Check weights that were read from a file.

    Raises:
        InputError: names the file and the first tensor with NaN or infinite values.
    """
    if (name := not_finite(tensors)) is not None:
        raise InputError(
            f"{where} holds NaN or infinite weights ({name}): they are of a training that "
            "diverged, or the file is damaged"
        )


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with NaN or infinite values."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None


def total(numbers: Iterable[Tensor | float]) -> float:
    """A sum that is finite where all are: one transfer from the device, however many there are."""
    return float(sum(numbers))
