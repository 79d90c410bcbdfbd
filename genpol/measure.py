"""Measuring a stretch of work: time inside the networks, peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn


@dataclass
class Cost:
    """What one loop has taken: images drawn and learnt from, wall-clock and CPU seconds."""

    images: int = 0
    seconds: float = 0.0
    model_seconds: float = 0.0
    cpu_seconds: float = 0.0  # over all threads
    peak_mb: float | None = None


class ModelClock:
    """Context: adds up the time inside the networks' forward and every backward, in `seconds`.

    Nested calls (recomputation under gradient checkpointing) count once. A backward also passes
    through the log-prob, a few element-wise operations. On CUDA each call is synchronised.
    """

    def __init__(self, networks: list[nn.Module], device: str) -> None:
        self.networks, self.device = networks, device
        self.seconds, self.depth = 0.0, 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its time added to `seconds`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.depth += 1
            synchronise(self.device)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                synchronise(self.device)
                self.depth -= 1
                if self.depth == 0:
                    self.seconds += time.perf_counter() - start

        return call

    def __enter__(self) -> ModelClock:
        self.stack = ExitStack()
        for network in self.networks:
            self.stack.enter_context(patch.object(network, "forward", self.timed(network.forward)))
        backward = patch.object(torch.Tensor, "backward", self.timed(torch.Tensor.backward))
        self.stack.enter_context(backward)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stack.close()


def synchronise(device: str) -> None:
    """Wait for a CUDA device; nothing elsewhere."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def reset_peak(device: str) -> bool:
    """Start measuring peak memory afresh; False where the system cannot."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak resident set
        return True
    except OSError:
        return False


def read_peak(device: str) -> float:
    """Peak memory in MB (1e6) since `reset_peak`: of the device, or resident in this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
