"""Measuring a stretch of work: time inside the networks, peak memory."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

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
    parts: dict[str, float] = field(default_factory=dict)  # wall-clock seconds by part


class ModelClock:
    """Context: adds up the time inside the networks' forward and what `timed` wraps, in `seconds`.

    Forwards are timed by hooks. Nested calls (recomputation under gradient checkpointing) count
    once. On CUDA the time is that between two events of the stream, so that nothing waits for the
    device; reading `seconds` waits.
    """

    def __init__(self, networks: list[nn.Module], device: str) -> None:
        self.networks, self.device = networks, device
        self.depth, self._seconds = 0, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> float:
        if self._events:
            synchronise(self.device)
            self._seconds += sum(a.elapsed_time(b) for a, b in self._events) / 1000
            self._events.clear()
        return self._seconds

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its time added to `seconds`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._begin()
            try:
                return function(*args, **kwargs)
            finally:
                self._end()

        return call

    def _begin(self, *_: object) -> None:
        if self.depth == 0:
            self._since: Any = self._now()
        self.depth += 1

    def _end(self, *_: object) -> None:
        self.depth -= 1
        if self.depth > 0:
            return
        now = self._now()
        if self.device.startswith("cuda"):
            self._events.append((self._since, now))
        else:
            self._seconds += now - self._since

    def _now(self) -> Any:
        if not self.device.startswith("cuda"):
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def __enter__(self) -> ModelClock:
        self._hooks = [
            hook
            for network in self.networks
            for hook in (
                network.register_forward_pre_hook(self._begin),
                network.register_forward_hook(self._end, always_call=True),
            )
        ]
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self._hooks:
            hook.remove()


class PartClock:
    """Context: CPU and wall-clock seconds within some methods, and calls, added up by part.

    Meanwhile each owner has a timed function of its own that stands before its class's method.

    Args:
        methods: (owner, name of the method, part).
        device: where they compute.
    """

    def __init__(self, methods: Sequence[tuple[Any, str, str]], device: str = "cpu") -> None:
        self.device, self._methods = device, methods
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}
        self.calls: Counter[str] = Counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Meanwhile the clock of `name` runs."""
        synchronise(self.device)
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            synchronise(self.device)
            self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu
            self.calls[name] += 1
            self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall

    def __enter__(self) -> Self:
        self._own: list[tuple[Any, str, dict[str, Any]]] = []
        for owner, name, part in self._methods:
            own = {key: value for key, value in vars(owner).items() if key == name}
            self._own.append((owner, name, own))
            setattr(owner, name, self._timed(getattr(owner, name), part))
        return self

    def __exit__(self, *exc: object) -> None:
        for owner, name, own in reversed(self._own):
            delattr(owner, name)
            for key, value in own.items():
                setattr(owner, key, value)

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return function(*args, **kwargs)

        return call


def count_flop(function: Callable[[], Any]) -> float:
    """Floating-point operations of the matrix products and convolutions that a call makes, those of
    its backward passes included."""
    from torch.utils.flop_counter import FlopCounterMode

    def onednn(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(x) * weight[0]

    own = {}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # `offline.networks.linear`
        own[torch.ops.mkldnn._linear_pointwise] = onednn
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        function()
    return float(counter.get_total_flops())


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
