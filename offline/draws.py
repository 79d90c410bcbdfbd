"""Random numbers and small tables on the way to the device that computes.

Every random stream of training and acting draws on the CPU, wherever the networks are: a run has
the same numbers on every device, and goes on from a checkpoint on another one. What is drawn moves
in pinned memory, without the host waiting for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, Tensor

PINNED = ("cuda",)
"""Kinds of devices that copy from pinned memory while the host goes on."""


def moved(x: Tensor, device: str | torch.device) -> Tensor:
    """`x` on a device; a copy from the CPU to a GPU does not wait for it."""
    device = torch.device(device)
    if x.device.type == "cpu" and device.type in PINNED:
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was told; nothing to wait for elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def globally_seeded(seed: int) -> Iterator[None]:
    """Meanwhile torch's global generators, those of GPUs in use too, draw from `seed`; afterwards
    they are as they were. For code of others that draws from them."""
    in_use = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(in_use)):
        torch.manual_seed(seed)
        yield


def normal(shape: Sequence[int], generator: Generator | None, like: Tensor) -> Tensor:
    """Standard normal numbers with the device and dtype of `like`, drawn on the generator's."""
    device = like.device if generator is None else generator.device
    drawn = torch.randn(tuple(shape), generator=generator, device=device, dtype=like.dtype)
    return moved(drawn, like.device)


def integers(high: int, count: int, generator: Generator | None, like: Tensor) -> Tensor:
    """(count,) uniform in 0..high-1 on the device of `like`."""
    device = like.device if generator is None else generator.device
    return moved(torch.randint(high, (count,), generator=generator, device=device), like.device)


def uniform(shape: Sequence[int], generator: Generator | None, like: Tensor) -> Tensor:
    """Uniform in [0, 1) with the device and dtype of `like`, drawn on the generator's."""
    device = like.device if generator is None else generator.device
    drawn = torch.rand(tuple(shape), generator=generator, device=device, dtype=like.dtype)
    return moved(drawn, like.device)
