"""A run of several processes, which `accelerate launch` or `torchrun` has started.

accelerate and torch.distributed do the work. Tensors on the CPU, and objects, go through gloo in a
group without a time-out, since a reward on one rank may take as long as it wants; tensors on a GPU
go through NCCL. That a process has ended is `lifeline.py`'s to notice.
"""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffusion.errors import Diverged, InputError, LostProcess, RewardError, shown
from diffusion.launched import launched
from diffusion.lifeline import Lifeline
from diffusion.parts import in_parts
from diffusion.ranks import Ranks

Result = TypeVar("Result")

PATIENCE = timedelta(days=30)
BUCKET = 2**25  # bytes of gradients that are summed in one call, at least
_KINDS = {kind.__name__: kind for kind in (InputError, RewardError, Diverged)}


@contextmanager
def joined(device: str | None = None) -> Iterator[Ranks]:
    """All processes of the launch while the context lasts; one without a launcher.

    Args:
        device: "cpu" keeps GPUs out of it, even where there are some.

    Raises:
        InputError: they cannot find one another.
        LostProcess: within the context, in place of what a lost process leads to elsewhere.
    """
    index, count, local = launched()
    if count == 1:
        yield Ranks()
        return
    ranks = Processes(index, count, local, gpu=device != "cpu" and torch.cuda.is_available())
    try:
        yield ranks
        ranks.wait()
    except Exception as error:  # in a collective that is not one of `Ranks`, perhaps
        cut = isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error))
        if cut and (lost := ranks.lifeline.loss()) is not None:
            ranks.leave(lost)
            raise lost from error
        ranks.leave(error)
        raise
    except BaseException as error:  # a launcher asks the others to leave when one is lost
        ranks.leave(error)
        if (lost := ranks.lifeline.lost) is not None:
            raise lost from error
        raise
    else:
        ranks.leave(None)


class Processes(Ranks):
    """This process among `count`; see `Ranks` for what the methods do. Made by `joined`.

    Args:
        index, count, local: as `launched` returns them.
        gpu: whether networks compute on GPUs, each process on the one of its index on its machine.
    """

    def __init__(self, index: int, count: int, local: int, *, gpu: bool) -> None:
        import torch.distributed as dist
        from accelerate import PartialState

        self.index, self.count, self.local = index, count, local
        self._dist = dist
        if gpu:
            cards = torch.cuda.device_count()
            if local >= cards:
                raise InputError(
                    f"process {index} is number {local + 1} on {socket.gethostname()}, which has "
                    f"{cards} GPU{'s' * (cards != 1)}: start as many processes as there are GPUs"
                )
            torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl" if gpu else "cpu:gloo"
        if not dist.is_initialized():  # as it is when one script makes two runs
            try:
                dist.init_process_group(backend)
            except RuntimeError as error:
                where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
                raise InputError(
                    f"process {index} of {count} does not find the others at {where} "
                    f"({shown(error, 300)}): have all been started, with one address and port?"
                ) from error
            atexit.register(_destroy)
        try:
            PartialState(cpu=not gpu)  # what accelerate's own objects will find
        except NotImplementedError as error:  # of cards that it wants other settings of NCCL for
            raise InputError(shown(error, 500)) from error
        self._cpu = dist.new_group(backend="gloo", timeout=PATIENCE)
        second = int(index == local)  # beside the first process on its machine
        self.lifeline = Lifeline(index, count, speaker=local == second)
        if self.main:
            address, server = self.lifeline.listen(os.environ["MASTER_ADDR"])
            self.broadcast(address)
            self.lifeline.accept(address, server)
        else:
            self.lifeline.connect(self.broadcast(None))  # type: ignore[arg-type]

    # -- leaving ----------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until all are here."""
        self._asked(lambda: self._dist.barrier(self._cpu))

    def leave(self, error: BaseException | None) -> None:
        """End this process's part; an error that not all raise is told to the others."""
        if error is not None and not getattr(error, "agreed", False) and self.lifeline.lost is None:
            who = f"process {self.index} of {self.count} on {socket.gethostname()}"
            kind = "" if hasattr(error, "exit_code") else f"{type(error).__name__}: "
            self.lifeline.tell(f"{who}: {kind}{shown(error, 1000)}")
        self.lifeline.close()

    def _asked(self, work: Callable[[], Result]) -> Result:
        """What a collective returns. Raises LostProcess where another process has ended."""
        lifeline = self.lifeline if hasattr(self, "lifeline") else None
        if lifeline is not None and lifeline.lost is not None:
            raise lifeline.loss() or AssertionError
        try:
            return work()
        except (RuntimeError, ConnectionError) as error:
            if lifeline is not None and (lost := lifeline.loss()) is not None:
                raise lost from error
            raise LostProcess(
                f"the processes of the run no longer reach one another ({shown(error, 300)})"
            ) from error

    # -- collectives ------------------------------------------------------------------------------

    def _group(self, values: Tensor) -> Any:
        return self._cpu if values.device.type == "cpu" else None

    def all_gather(self, values: Tensor) -> Tensor:
        values = values.detach().contiguous()
        parts = [torch.empty_like(values) for _ in range(self.count)]
        self._asked(lambda: self._dist.all_gather(parts, values, group=self._group(values)))
        return torch.stack(parts)

    def all_gather_objects(self, value: Result) -> list[Result]:
        found: list[Any] = [None] * self.count
        self._asked(lambda: self._dist.all_gather_object(found, value, group=self._cpu))
        return found

    def exchange(self, values: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        out = values.new_empty(sum(receive), *values.shape[1:])
        values = values.contiguous()
        self._asked(
            lambda: self._dist.all_to_all_single(
                out, values, list(receive), list(send), group=self._cpu
            )
        )
        return out

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        # Those of split weights are sums already.
        grads = [p.grad for p in parameters if p.grad is not None and not in_parts(p.grad)]
        for bucket in _buckets(grads):
            flat = torch.cat([grad.flatten() for grad in bucket])
            self._sum(flat)
            for grad, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                grad.copy_(part.view_as(grad))

    def _sum(self, values: Tensor) -> None:
        self._asked(lambda: self._dist.all_reduce(values, group=self._group(values)))

    def broadcast(self, value: Result) -> Result:
        box: list[Any] = [value if self.main else None]
        self._asked(lambda: self._dist.broadcast_object_list(box, src=0, group=self._cpu))
        return box[0]

    def broadcast_tensors(
        self,
        tensors: Mapping[str, Tensor],
        take: Callable[[str, Tensor], Tensor] = lambda name, values: values,
    ) -> dict[str, Tensor]:
        shapes = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
        found: dict[str, Tensor] = {}
        for name, (shape, dtype) in self.broadcast(shapes).items():
            own = tensors[name].cpu().contiguous() if self.main else torch.empty(shape, dtype=dtype)
            # As bytes: gloo does not know every type of number.
            self._send(own.reshape(-1).view(torch.uint8))
            found[name] = take(name, own)
        return found

    def _send(self, values: Tensor) -> None:
        self._asked(lambda: self._dist.broadcast(values, 0, group=self._cpu))

    def by_main(self, work: Callable[[], Result]) -> Result:
        outcome: Any = None
        if self.main:
            outcome = _tried(work)
        value, error = self.broadcast(outcome)
        if error is not None:
            raise _again(*error)
        return value

    def together(self, work: Callable[[], Result]) -> Result:
        outcome: Any = _tried(work)
        for other in self.all_gather_objects(outcome[1]):
            if other is not None:
                raise _again(*other)
        return outcome[0]

    def any(self, flag: bool) -> bool:
        return self.most(float(flag)) > 0

    def most(self, number: float) -> float:
        return float(self.all_gather(torch.tensor(number, dtype=torch.float64)).max())

    def require_alike(self, what: str, remedy: str, facts: Mapping[str, object]) -> None:
        everyone = self.all_gather_objects(dict(facts))
        for index, theirs in enumerate(everyone):
            for name in {**everyone[0], **theirs}:
                first, other = everyone[0].get(name), theirs.get(name)
                if first != other:
                    error = InputError(
                        f"{what} are not the same in all processes: {name} is {shown(first)} in "
                        f"process 0 and {shown(other)} in process {index}; {remedy}"
                    )
                    error.agreed = True  # type: ignore[attr-defined]
                    raise error


def _destroy() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _tried(work: Callable[[], Result]) -> tuple[Result | None, tuple[str, str] | None]:
    """What comes of it: a value, or the kind and text of an error that a user can mend."""
    try:
        return work(), None
    except LostProcess:
        raise
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        return None, (type(error).__name__, str(error))


def _again(kind: str, text: str) -> InputError:
    """An error that all processes raise."""
    error = _KINDS.get(kind, InputError)(text)
    error.agreed = True  # type: ignore[attr-defined]
    return error


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type and device, in lists of some size."""
    some: list[Tensor] = []
    size = 0
    for grad in grads:
        alike = not some or (some[0].dtype, some[0].device) == (grad.dtype, grad.device)
        if not alike or size >= BUCKET:
            yield some
            some, size = [], 0
        some.append(grad)
        size += grad.numel() * grad.element_size()
    if some:
        yield some
