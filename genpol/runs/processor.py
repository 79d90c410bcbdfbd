"""What the processor can do: its speed in float32, bfloat16 and float16, measured.

Processors differ by a factor of a hundred. One with AVX512-BF16 or AMX multiplies bfloat16 at least
as fast as float32; one without it converts each number in software and is fifty times slower than
if it had been left in float32. What the processor says of itself is no sure sign, because PyTorch
and its libraries take other paths in each version, so a small product is timed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from offline.threads import in_threads, processors

Precision = Literal["float32", "bfloat16", "float16"]
NAMES: dict[str, Precision] = {
    "bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16",
}  # fmt: skip
# Options that choose the precision of arithmetic, and where it is done.
ON_THE_CPU = ("model_dtype",)
ON_THE_DEVICE = ("autocast", "dtype", "candidate_dtype", "critic_dtype")
SLOWER = 1.25  # times float32's seconds from which on a precision does not pay

_ROWS, _UNITS = 128, 256  # of the product that is timed for a decision: 0.2 ms in float32
_SIDE = 1024  # of the matrices that a benchmark's GFLOP/s are measured by


@cache
def times_slower(precision: Precision) -> float:
    """Seconds of a product in `precision`, in those that float32 takes; infinite where there is no
    such product. Measured once per process, in one thread, in some milliseconds."""
    import torch

    x, weight = torch.ones(_ROWS, _UNITS), torch.ones(_UNITS, _UNITS)
    low = getattr(torch, precision)
    pairs = [(x, weight), (x.to(low), weight.to(low))]
    seconds = [float("inf"), float("inf")]
    # Within `no_grad`, so that a caller's autocast or gradients change nothing.
    with in_threads(1), torch.no_grad(), torch.autocast("cpu", enabled=False):
        for turn in range(6):
            for i, pair in enumerate(pairs):
                if i and turn > 2 and seconds[1] > 8 * seconds[0]:
                    continue  # that is clear enough, and slow
                start = time.perf_counter()
                try:
                    torch.nn.functional.linear(*pair)
                except RuntimeError:  # not implemented on the CPU
                    return float("inf")
                if turn:
                    seconds[i] = min(seconds[i], time.perf_counter() - start)
    return seconds[1] / seconds[0]


def pays(precision: Precision) -> bool:
    """Whether a product in `precision` is about as fast as in float32, or faster."""
    return precision == "float32" or times_slower(precision) < SLOWER


def slow_precisions(options: Any, device: str | None = None) -> list[str]:
    """A line for each option that would make a run slower than float32 on this processor.

    Args:
        options: a command's; see `ON_THE_DEVICE` and `ON_THE_CPU`.
        device: where the networks compute; default what `pick_device` would take.
    """
    found = []
    for name in (*ON_THE_DEVICE, *ON_THE_CPU):
        said = getattr(options, name, None)
        precision = NAMES.get(said) if isinstance(said, str) else None
        if precision is None or (name in ON_THE_DEVICE and not on_the_cpu(device)):
            continue
        if (times := times_slower(precision)) >= SLOWER:
            found.append(
                f"--{name.replace('_', '-')} {said} makes products {times:.2g} times slower than "
                "float32 on this processor: leave it out"
            )
    return found


def on_the_cpu(device: str | None) -> bool:
    """Whether networks on `device` compute on the CPU; None is what `pick_device` would take."""
    from genpol.runs.device import pick_device

    return (device if device not in (None, "auto") else pick_device(None)) == "cpu"


@dataclass(frozen=True)
class Speed:
    """GFLOP/s of square products, by precision and threads."""

    gflops: dict[tuple[Precision, int], float]

    def metrics(self) -> dict[str, float]:
        """For a benchmark's summary; see docs/metrics.md."""
        return {
            f"machine/gflops_{precision}_{threads}": speed
            for (precision, threads), speed in self.gflops.items()
        } | {"machine/processors": float(processors())}

    def share(self, flop: float, cpu_seconds: float) -> float:
        """Of what so many seconds of one thread could have multiplied in float32."""
        return flop / cpu_seconds / 1e9 / self.gflops["float32", 1]

    def __str__(self) -> str:
        lines = []
        for precision in ("float32", "bfloat16"):
            speeds = {n: v for (kind, n), v in self.gflops.items() if kind == precision}
            lines.append(f"{precision} " + ", ".join(
                f"{v:.3g} in {n} thread{'s' * (n > 1)}" for n, v in speeds.items()
            ))  # fmt: skip
        return f"this machine's GFLOP/s: {'; '.join(lines)}"


def measure_speed() -> Speed:
    """GFLOP/s in float32 and bfloat16, in one thread and in all: a tenth of a second or two."""
    found: dict[tuple[Precision, int], float] = {}
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for threads in sorted({1, processors()}):
        for precision in precisions:
            found[precision, threads] = _gflops(precision, threads)
    return Speed(found)


def _gflops(precision: Precision, threads: int) -> float:
    """The fastest of a few products; smaller ones where `precision` is slow."""
    import torch

    side = _SIDE if pays(precision) else _SIDE // 4
    a = torch.ones(side, side).to(getattr(torch, precision))
    fastest = float("inf")
    with in_threads(threads), torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            try:
                torch.nn.functional.linear(a, a)
            except RuntimeError:
                return 0.0
            fastest = min(fastest, time.perf_counter() - start)
    return 2 * side**3 / fastest / 1e9
