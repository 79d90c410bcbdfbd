"""How many threads PyTorch computes in: the one place that decides it.

A small network gains nothing from a second thread, and beside other programs it loses much: each
operation ends when the last of its threads has had its turn. So small networks get one thread.
What may gain from more (convolutions, wide layers) is timed for some milliseconds in one thread and
in more, and gets more only where that is clearly faster at the time. In order of precedence:

    --threads            of a command, or `threads` of its options in Python
    $OMP_NUM_THREADS     the user's own setting
    one                  for small networks
    a measurement        for the others

The number changes the order of sums, hence the last bits of results. A run therefore stores it in
its config.json, and goes on with the same number when it is resumed.

PyTorch keeps the number for each thread of Python: a new one starts with all processors for its
matrix products whatever the others were told. `use_threads` is for those that start threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 512  # units of a layer up to which a network counts as small
WORTH = 0.75  # more threads are taken where they need at most this share of the time
BUDGET = 2e8  # FLOP of a measured operation: some milliseconds
REPEATS = 5


@dataclass(frozen=True)
class Product:
    """A typical product of a layer: (rows, inputs) by (inputs, outputs)."""

    rows: int
    inputs: int
    outputs: int

    @property
    def small(self) -> bool:
        """Whether one thread is enough without a measurement."""
        return max(self.inputs, self.outputs) <= SMALL

    def operation(self) -> Callable[[], Any]:
        """The product, or as many rows of it as are timed quickly."""
        import torch

        rows = min(self.rows, max(1, int(BUDGET / (2 * self.inputs * self.outputs))))
        x, weight = torch.ones(rows, self.inputs), torch.ones(self.outputs, self.inputs)
        return lambda: torch.nn.functional.linear(x, weight)


@dataclass(frozen=True)
class Convolution:
    """A typical 3 x 3 convolution: so many images of `size` x `size`, channels in and out."""

    images: int
    channels: int
    size: int
    small = False

    def operation(self) -> Callable[[], Any]:
        """The convolution, or a part of it that is timed quickly."""
        import torch

        images, size, channels = self.images, self.size, self.channels
        while 18 * channels**2 * images * size**2 > BUDGET:
            if images > 1:
                images //= 2
            elif size > 8:
                size //= 2
            else:
                channels //= 2
        x = torch.ones(images, channels, size, size)
        weight = torch.ones(channels, channels, 3, 3)
        return lambda: torch.nn.functional.conv2d(x, weight, padding=1)


Typical = Product | Convolution


def choose(asked: int | None = None, typical: Iterable[Typical] = ()) -> int:
    """The number of threads to compute in; see the top of the file.

    Args:
        asked: what an option says.
        typical: operations of the work, the sizes of its own; none for small networks.

    Raises:
        InputError: `asked` is not a number of threads.
    """
    if asked is not None:
        if asked < 1:
            raise InputError(f"--threads must be at least 1, received {asked}")
        return asked
    if (own := users_threads()) is not None:
        return own
    large = [operation for operation in typical if not operation.small]
    most = processors()
    if not large or most == 1:
        return 1
    return max(fastest(operation.operation(), most) for operation in large)


def users_threads() -> int | None:
    """$OMP_NUM_THREADS, of which the first number is meant for the outermost level."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def processors() -> int:
    """Processors that this process may keep busy: those it may run on, and a container's quota."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        count = os.cpu_count() or 1
    quota = _quota()
    return count if quota is None else max(1, min(count, int(quota)))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Processors that the control group of this process may use, in all; None for no limit."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no control groups, or the limit is "max"
        return None


def fastest(operation: Callable[[], Any], most: int) -> int:
    """The number of threads, up to `most`, from which on more are not clearly faster."""
    chosen, counts = 1, [2**i for i in range(1, most.bit_length()) if 2**i < most] + [most]
    for count in counts:
        before, after = _times(operation, (chosen, count))
        if after > WORTH * before:
            break
        chosen = count
    return chosen


def _times(operation: Callable[[], Any], counts: Sequence[int]) -> list[float]:
    """Median seconds in each number of threads. They take turns, so that a busy machine disturbs
    them alike."""
    import torch

    seconds: list[list[float]] = [[] for _ in counts]
    with in_threads(torch.get_num_threads()), torch.no_grad():
        for turn in range(REPEATS + 1):
            for count, found in zip(counts, seconds, strict=True):
                use_threads(count)
                start = time.perf_counter()
                operation()
                if turn:  # the first starts the threads
                    found.append(time.perf_counter() - start)
    return [sorted(found)[len(found) // 2] for found in seconds]


def use_threads(count: int) -> None:
    """Compute in so many threads from here on, in the calling thread of Python."""
    import torch

    torch.set_num_threads(count)


@contextmanager
def in_threads(count: int | None) -> Iterator[None]:
    """Meanwhile PyTorch computes in so many threads; in as many as it does already if None."""
    import torch

    before = torch.get_num_threads()
    try:
        if count is not None:
            use_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def typical_of(weights: Iterable[Tensor], rows: int) -> list[Typical]:
    """The largest layer and the largest convolution of networks, for `choose`.

    Args:
        weights: all of theirs.
        rows: observations or proposals at a time.
    """
    found: list[Typical] = []
    shapes = [tuple(weight.shape) for weight in weights]
    layers = [shape[-2:] for shape in shapes if len(shape) in (2, 3)]
    kernels = [shape[:2] for shape in shapes if len(shape) == 4 and shape[-1] > 1]
    if layers:
        outputs, inputs = max(layers, key=lambda shape: shape[0] * shape[1])
        found.append(Product(rows, inputs, outputs))
    if kernels:
        outputs, inputs = max(kernels, key=lambda shape: shape[0] * shape[1])
        found.append(Convolution(1, max(16, int((outputs * inputs) ** 0.5)), 32))
    return found
