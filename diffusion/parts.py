"""Tensors that lie in parts on the processes of a run, each of which holds some of their rows.

FSDP2 makes such tensors (`DTensor`) of the weights that it splits. Gradients, moments and averages
of split weights are split in the same way. Every function here also takes whole tensors, so that
code which is written for parts needs no case for whole ones.

`whole`, `gathered` and `added` are collective: all processes call them in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor


def in_parts(tensor: object) -> bool:
    """Whether a tensor is split; asked without its class, whose import takes most of a second."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "device_mesh")


def here(tensor: Tensor) -> Tensor:
    """The part that this process holds, in the same memory; a whole tensor itself. No gradient."""
    if not in_parts(tensor):
        return tensor.detach()
    return cast(Any, tensor.detach()).to_local()


def share(values: Tensor, like: Tensor) -> Tensor:
    """A new tensor on the device of `like`, split as `like` is.

    Args:
        values: whole, the same in every process, of the shape of `like`.
        like: split or whole.
    """
    if not in_parts(like):
        return values.to(like.device, copy=True)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = cast(Any, like).device_mesh, cast(Any, like).placements
    # Without a source rank nothing is sent: each process takes its part of its own values.
    made = distribute_tensor(values.detach(), mesh, placements, src_data_rank=None)
    return made.to(like.device) if made.device != like.device else made.clone()


def fill(into: Tensor, values: Tensor) -> None:
    """Copy values into a tensor in place. Either may be split; whole values are taken in part."""
    with torch.no_grad():
        if in_parts(into) and not in_parts(values):
            values = share(values, into)
        here(into).copy_(here(values))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process."""
    return cast(Any, tensor.detach()).full_tensor() if in_parts(tensor) else tensor


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors by name, those that were split on the CPU; empty where `keep` is off.

    They are gathered one after the other, so that a device holds one more at a time.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        complete = whole(tensor)
        if keep:
            found[name] = complete.cpu() if in_parts(tensor) else complete
    return found


def added(number: Tensor, of: Sequence[Tensor]) -> Tensor:
    """A number of `of`'s parts, summed over the processes that hold the other parts."""
    split = [tensor for tensor in of if in_parts(tensor)]
    if not split:
        return number
    import torch.distributed as dist

    first = cast(Any, split[0])
    for dimension, placement in enumerate(first.placements):
        if placement.is_shard():
            dist.all_reduce(number, group=first.device_mesh.get_group(dimension))
    return number


def clip(tensors: Sequence[Tensor], most: float, norm: Tensor) -> None:
    """Scale tensors in place so that their `total_norm`, which is given, is at most `most`; as
    `torch.nn.utils.clip_grads_with_norm_` does."""
    if tensors:
        factor = (most / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([here(tensor) for tensor in tensors], factor)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all numbers of some tensors, the same in every process."""
    norm = torch.nn.utils.get_total_norm([here(tensor) for tensor in tensors])
    if not any(map(in_parts, tensors)):
        return norm
    return added(norm.square(), tensors).sqrt()
