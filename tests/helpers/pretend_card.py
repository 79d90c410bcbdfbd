"""A device "card:0" without a card: its tensors hold numbers on the CPU and say they are there.

Inside `pretend_card()`, what is made on "card:0" or moved there is a `Card`. An operation on a
`Card` and a tensor of the CPU is refused as CUDA refuses it, and whatever makes the host wait for a
GPU is counted. The numbers are real, so what is computed there can be compared with the CPU's.

Importing this takes PyTorch's place for a device of one's own, for good: import it in a process of
its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from offline import draws

_setup_privateuseone_for_python_backend("card")
CARD, CPU = torch.device("card:0"), torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}  # from one device to the other
# Indices may lie on the CPU; they are then copied, which waits.
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
# What makes the host wait: a number is read, or the size of the result depends on numbers.
WAITS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default}
WAITS |= {aten._unique2.default, aten.masked_select.default, aten.bincount.default}


class Card(Tensor):
    """Numbers that say that they are on the card."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Card:
        card = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CARD,
        )
        card.held = held
        return card

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()  # whoever asks wants to know what shares memory

    def tolist(self) -> Any:
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} of a tensor of the card outside of pretend_card()")


class Watched(TorchDispatchMode):
    """What happens on the card, and how often the host waited for it, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        cards = [x for x in tensors if isinstance(x, Card)]
        asked = torch.device(kwargs.get("device") or (CARD if cards else CPU))
        if not cards and asked == CPU:
            return func(*args, **kwargs)
        self.calls += 1
        self._look(func, args, kwargs, tensors, asked)
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        held_args, held = tree_map(lambda x: x.held if isinstance(x, Card) else x, (args, kwargs))
        out = func(*held_args, **held)
        same = {id(x.held): x for x in cards}

        def there(x: Any) -> Any:
            if not isinstance(x, Tensor) or asked == CPU:
                return x
            return same[id(x)] if id(x) in same else Card(x)

        return tree_map(there, out)

    def _look(self, func, args, kwargs, tensors, asked) -> None:
        cards = [x for x in tensors if isinstance(x, Card)]
        if func in WAITS:
            self.waits[func.__name__] += 1
        elif func is aten._to_copy.default:
            crosses = bool(cards) == (asked == CPU)
            pinned = not cards and getattr(args[0], "pinned", False)
            if crosses and not (pinned and kwargs.get("non_blocking")):
                self.waits[f"copy to {asked.type}"] += 1
        elif func is aten.copy_.default:
            if isinstance(args[0], Card) != isinstance(args[1], Card) and args[1].ndim:
                self.waits["copy_ from one device to the other"] += 1
        elif func in INDEXED:
            indices = [x for x in args[1] if x is not None]
            if not isinstance(args[0], Card):
                raise RuntimeError(f"{func}: a tensor of the CPU indexed by one of the card")
            if any(not isinstance(x, Card) for x in indices):
                self.waits["indices on the CPU"] += 1
            one = func is not aten.index.Tensor and args[2].ndim == 0
            if any(x.dtype == torch.bool for x in indices) and not one:
                self.waits["indexed by a mask"] += 1
        else:
            # A number (no axes) of the CPU may be an operand, but not of what works on many.
            many = "_foreach" in str(func) or "_fused" in str(func)
            stray = [x for x in tensors if not isinstance(x, Card) and (x.ndim or many)]
            if stray and len(stray) < len(tensors):
                raise RuntimeError(
                    f"{func}: expected all tensors to be on the same device, found card:0 and cpu "
                    f"{[tuple(x.shape) for x in stray]}"
                )


def _pin(x: Tensor) -> Tensor:
    x = x.clone()
    x.pinned = True  # type: ignore[attr-defined]
    return x


@contextmanager
def pretend_card() -> Iterator[Watched]:
    """Meanwhile there is a device "card:0", and copies to it from pinned memory do not wait."""
    pins = mock.patch.object(Tensor, "pin_memory", _pin)
    # A tensor that wraps another one cannot be sliced in inference mode.
    no_grad = mock.patch.object(torch, "inference_mode", torch.no_grad)
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) moves by _to_copy
    try:
        with mock.patch.object(draws, "PINNED", ("card",)), pins, no_grad, Watched() as watched:
            yield watched
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
