"""How much is computed at a time: a number that is given, or the most that fits into memory.

`Fitting.over` walks through M things in ranges of one size. With "auto" it starts with the largest
size that is worth trying. Where memory runs out, it halves the size, and keeps the smaller one.

Several processes agree: what fails in one is done again by all, so that all make as many parts.

What failed is done again. Where the failed part may have left something behind, such as half of a
micro-batch's gradient, `restart` undoes everything that was done, and the walk begins anew: then no
part is ever counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from diffusion.errors import InputError, shown
from diffusion.ranks import Ranks
from diffusion.recommended import PUBLISHED

LARGEST = 256  # larger batches are no faster on any card that we know of
REMEDIES = "--gradient-checkpointing, --offload all, --dtype bf16 or a smaller --train-resolution"
Part = Callable[[int, int], None]  # the first of a range, and the first after it


class Fitting:
    """A size, which falls if it is found and not given.

    Args:
        size: how many things at a time, at least 1; with `auto`, at most.
        auto: whether to halve it where memory runs out.
        option: that gives the size, for messages.
        ranks: the processes that have the same size, each with as many things.

    Attributes:
        size: things of one part.
        auto: as given.
        halvings: how often memory ran out.
    """

    def __init__(
        self, size: int, *, auto: bool = False, option: str = "", ranks: Ranks | None = None
    ) -> None:
        self.size, self.auto, self.option, self.halvings = size, auto, option, 0
        self.ranks = ranks or Ranks()

    @staticmethod
    def of(
        config: object,
        name: str,
        device: torch.device | str,
        ranks: Ranks | None = None,
        *,
        split: bool = False,
    ) -> Fitting:
        """The size that the setting `name` asks for.

        "auto" is the published size where there is no GPU: running out of the machine's memory
        ends the process, or makes it swap. It is so, too, where the network is `split` over
        processes: one that has run out cannot begin a pass again while the others are in it.
        """
        size, option = getattr(config, name), f"--{name.replace('_', '-')}"
        if size != "auto":
            return Fitting(size, option=option, ranks=ranks)
        if split or torch.device(device).type != "cuda":
            return Fitting(PUBLISHED[name], option=option, ranks=ranks)
        return Fitting(LARGEST, auto=True, option=option, ranks=ranks)

    def over(
        self,
        count: int,
        part: Part,
        restart: Callable[[], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        """Call `part(first, last)` for ranges that make up [0, count) in order.

        Args:
            count: of things; the same in every process.
            part: what to do with one range. Where memory runs out in it, it is called again with
                a smaller range.
            restart: undoes all parts. Where it is given, the walk begins again at 0.
            after: called after each part that is done, in all processes equally often.

        Raises:
            InputError: not even one thing fits, or a given size does not.
        """
        first = 0
        while first < count:
            last = min(first + self.size, count)
            fits = self._fits(part, first, last)
            if self.auto and self.ranks.count > 1:
                fits = not self.ranks.any(not fits)
            if fits:
                first = last
                if after is not None:
                    after()
                continue
            if last - first == 1:
                raise InputError(self._message(1))
            self.size, self.halvings = (last - first) // 2, self.halvings + 1
            from accelerate.utils.memory import clear_device_cache

            clear_device_cache(garbage_collection=True)
            if restart is not None:
                restart()
                first = 0

    def _fits(self, part: Part, first: int, last: int) -> bool:
        """Do one part; False where memory ran out, and a smaller part may be tried."""
        try:
            part(first, last)
            return True
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            if not self.auto:
                raise InputError(self._message(last - first)) from error
            return False

    def _message(self, size: int) -> str:
        name = f"{self.option} {size}" if self.option else f"{size} at a time"
        smaller = f"{self.option or 'pass'} auto or a smaller number; then " if size > 1 else ""
        return f"memory ran out at {name}. Try {smaller}{REMEDIES}"


def fitting(size: int | Fitting) -> Fitting:
    """A plain number as a size that stays."""
    return size if isinstance(size, Fitting) else Fitting(size)


def found(rollout_batch: Fitting, micro_batch: Fitting) -> dict[str, float]:
    """Metrics: the sizes that were found, and not given."""
    sizes = {"memory/rollout_batch": rollout_batch, "memory/micro_batch": micro_batch}
    return {name: float(one.size) for name, one in sizes.items() if one.auto}


@contextmanager
def memory_said() -> Iterator[None]:
    """Within this context memory that runs out is an InputError that says what to try."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        said = shown(error) or type(error).__name__
        raise InputError(
            f"memory ran out ({said}), not in drawing or training, whose sizes are found. Another "
            f"program may use the GPU, too; else try {REMEDIES}"
        ) from error


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory, of a GPU or of the machine, has run out."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, RuntimeError) and "CUBLAS_STATUS_ALLOC_FAILED" in str(error):
        return True
    return isinstance(error, Exception) and should_reduce_batch_size(error)
