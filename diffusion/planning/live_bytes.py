"""Bytes of the tensors that are alive while code runs, on devices and on the meta device alike.

On the meta device tensors have shapes and no data, so a network's pass costs little and its memory
is what the pass would need: outputs, what autograd saves, gradients. What a kernel takes for itself
while it runs (a workspace) is not seen on any device.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
HOST, DEVICE = "host", "device"


class LiveBytes(TorchDispatchMode):
    """Context: follows storages that are made inside it.

    Tensors on the meta device stand for the device. What is copied from there to the CPU stays
    without data, and counts as the host's from then on.

    Attributes:
        live: bytes alive now, by place: "device" (the meta device) or "host" (the CPU).
        peak: the most of each at any time.
        peak_total: the most of both together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = {HOST: 0, DEVICE: 0}
        self.peak = {HOST: 0, DEVICE: 0}
        self.peak_total = 0
        self._known: dict[int, str] = {}

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            self._follow(tensor, HOST if tensor.device.type == "cpu" else DEVICE)

    def reset_peak(self) -> None:
        """From now on `peak` is of what follows."""
        self.peak, self.peak_total = dict(self.live), sum(self.live.values())

    def _follow(self, tensor: Tensor, place: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = place
        self.live[place] += size
        self.peak[place] = max(self.peak[place], self.live[place])
        self.peak_total = max(self.peak_total, sum(self.live.values()))
        weakref.finalize(storage, self._forget, key, place, size)

    def _forget(self, key: int, place: str, size: int) -> None:
        del self._known[key]
        self.live[place] -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        tensors = [one for one in tree_leaves((args, given)) if isinstance(one, Tensor)]
        place = self._place_of(tensors)
        if tensors and tensors[-1].is_meta:
            if func is aten._local_scalar_dense.default:
                return args[0].dtype.is_floating_point and 0.0  # there is no value: 0, or False
            if func is aten._to_copy.default and _is_cpu(given.get("device")):
                place, given["device"] = HOST, "meta"
            elif func is aten.copy_.default and args[0].device.type == "cpu":
                return args[0]
        made = func(*args, **given)
        before = {one.untyped_storage()._cdata for one in tensors}  # what is made may be a view
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and one.untyped_storage()._cdata not in before:
                self._follow(one, HOST if one.device.type == "cpu" else place)
        return made

    def _place_of(self, tensors: list[Tensor]) -> str:
        """Where the result of an operation on these lies: on the host where all of them do."""
        places = {self._known.get(one.untyped_storage()._cdata, DEVICE) for one in tensors}
        return HOST if places == {HOST} else DEVICE


def _is_cpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cpu"


class FusedAttention(TorchFunctionMode):
    """Context: attention on the meta device keeps what fused kernels keep, not a table of all pairs
    of tokens, which the meta device alone would choose."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        fused = torch.nn.functional.scaled_dot_product_attention
        if func is fused and (args[0] if args else given["query"]).is_meta:
            return _fused(*args, **given)
        return func(*args, **given)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    if query.ndim == 3:
        rows = [one.unsqueeze(0) for one in (query, key, value)]
        return _fused(rows[0], rows[1], rows[2], attn_mask, 0.0, is_causal, scale).squeeze(0)
    mask = attn_mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    elif mask is not None:
        mask = torch.zeros_like(mask, dtype=query.dtype)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale
    )[0]


class LikeAutocast(TorchFunctionMode):
    """Context: operations on the meta device take and give the precisions that `torch.autocast`
    would choose on a device; the casts of a weight are kept for the length of the context.

    Args:
        dtype: of products and convolutions.
        norms: whether norms and softmax compute in float32, as on CUDA and not on the CPU.
    """

    HALF = frozenset(
        {
            *(torch.nn.functional.linear, torch.nn.functional.conv1d, torch.conv1d),
            *(torch.nn.functional.conv2d, torch.conv2d, torch.nn.functional.conv_transpose2d),
            *(torch.matmul, torch.bmm, torch.baddbmm, torch.Tensor.matmul, torch.Tensor.bmm),
            *(torch.Tensor.__matmul__, torch.nn.functional.scaled_dot_product_attention),
        }
    )
    FULL = frozenset(
        {
            *(torch.nn.functional.layer_norm, torch.nn.functional.group_norm),
            *(torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax),
        }
    )

    def __init__(self, dtype: torch.dtype, *, norms: bool = True) -> None:
        super().__init__()
        self.dtype, self.norms = dtype, norms
        self._weights: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        wanted = self.dtype if func in self.HALF else None
        if self.norms and func in self.FULL:
            wanted = torch.float32
        given = dict(kwargs or {})
        if wanted is not None:
            args = tuple(self._as(one, wanted) for one in args)
            given = {name: self._as(one, wanted) for name, one in given.items()}
        return func(*args, **given)

    def _as(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, torch.nn.Parameter) or not value.requires_grad:
            return value.to(dtype)
        if id(value) not in self._weights:
            self._weights[id(value)] = value.to(dtype)
        return self._weights[id(value)]
