"""A GPU that is not there, and a record of what would wait for it.

Tensors on PyTorch's meta device have a shape and no numbers, so nothing is computed. Code waits for
a GPU where it asks for a number, or for a size that depends on numbers, and where it copies between
GPU and host without `non_blocking`. All of these can be seen without a GPU. Two ways to the GPU are
known: `diffusion.chain.sent`, which does not wait, and `_table` of a process, which copies a table
once. What `torch.tensor(list, device=...)` copies is not seen.
"""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

aten = torch.ops.aten
NUMBERS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
    aten.equal.default, aten.is_nonzero.default,
}  # fmt: skip
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
KNOWN = ("sent", "_table")
GPU = torch.device("meta")


class FakeGpu(TorchDispatchMode):
    """Context that watches tensors on `GPU`. `waits` says what would have waited, and where."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        there = [
            t
            for t in tree_flatten((args, kwargs))[0]
            if isinstance(t, torch.Tensor) and t.device.type == GPU.type
        ]
        if (func in NUMBERS and there) or (func in INDEXING and there and _indexed(args[1])):
            self._note(func)
        if func is aten.copy_.default and args[0].device != args[1].device:
            self._copied(func, len(args) > 2 and args[2], kwargs)
        device = kwargs.get("device")
        if func is aten._to_copy.default and device is not None:
            if torch.device(device).type != args[0].device.type:
                self._copied(func, False, kwargs)
        return func(*args, **kwargs)

    def _copied(self, func: Any, without: bool, kwargs: dict[str, Any]) -> None:
        if not without and not kwargs.get("non_blocking"):
            self._note(func)

    def _note(self, func: Any) -> None:
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename][:-3]
        if not any(f.name in KNOWN and "/diffusion/" in f.filename for f in frames):
            self.waits.append(f"{func}: {frames[-1].filename}:{frames[-1].lineno}")


def _indexed(indices: Any) -> bool:
    """Whether indices have to be copied or counted first."""
    found = [t for t in indices if t is not None]
    return any(t.dtype == torch.bool or (t.device.type == "cpu" and t.ndim) for t in found)


def put(value: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape on the GPU."""
    return torch.empty_like(value, device=GPU)
