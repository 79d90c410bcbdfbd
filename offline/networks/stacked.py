"""Networks of equal shape, run one after another, with one backward for all of them.

    h_0 = x_0,    h_i = W_i f(n_i(h_{i-1})) + b_i,    n LayerNorm or nothing, f ReLU or SiLU

On a CPU much of an update of small networks is not products but what surrounds them: automatic
differentiation visits several nodes for each network and layer, and gathers the gradients of single
networks into those of the stacked parameters. Here all that is one node. A gradient's gradient
(create_graph) is left to automatic differentiation.

Shape legend: E networks, B rows, N hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from offline.networks.linear import linear, multiply, weight_gradient

Activation = Literal["relu", "silu"]
EPS = 1e-5  # of LayerNorm
_norm = torch.ops.aten.native_layer_norm.default
_norm_backward = torch.ops.aten.native_layer_norm_backward.default


class Layer:
    """What comes after an activation; every tensor has E in front.

    Args:
        weight: (E, outputs, N); bfloat16 to multiply in it, while all else is float32.
        bias: (E, outputs).
        norm: scale and shift (E, N) of a LayerNorm before the activation.
        bare: the first layer of a network, before which there is no activation.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, *norm: Tensor, low: bool = False, bare: bool = False
    ) -> None:
        self.tensors = (weight, bias, *norm)
        self.kind = (bool(norm), low, bare)


def run(
    xs: Sequence[Tensor],
    layers: Sequence[Layer],
    activation: Activation,
    which: Sequence[int] | None = None,
) -> Tensor:
    """C inputs (B, N) -> (C, B, outputs).

    Args:
        xs: of each network; for one without a bare first layer, what its activation gets.
        layers: of all networks.
        activation: before every layer that is not bare.
        which: C networks; default all E, in order.
    """
    kinds = tuple(layer.kind for layer in layers)
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    which = range(len(tensors[0])) if which is None else which
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*xs, *tensors)):
        return _Stacked.apply(activation, kinds, tuple(which), *xs, *tensors)
    return torch.stack(
        [
            _forward(x, _at(tensors, kinds, e), activation, None)
            for x, e in zip(xs, which, strict=True)
        ]
    )


Kinds = tuple[tuple[bool, bool, bool], ...]


def _plain(
    activation: str,
    kinds: Kinds,
    which: Sequence[int],
    xs: Sequence[Tensor],
    tensors: Sequence[Tensor],
) -> Tensor:
    """`run` by automatic differentiation."""
    # unbind: the gradient of each tensor[e] would be as large as that of all networks together
    split = [tensor.unbind() for tensor in tensors]
    outs = []
    for x, e in zip(xs, which, strict=True):
        for weight, bias, norm, low, bare in _layers([t[e] for t in split], kinds):
            if norm:
                x = F.layer_norm(x, x.shape[-1:], norm[0], norm[1], EPS)
            if not bare:
                x = x.relu() if activation == "relu" else F.silu(x)
            if low:
                dtype = torch.bfloat16
                x = F.linear(x.to(dtype), weight.to(dtype)).to(x.dtype) + bias
            else:
                x = linear(x, weight, bias)
        outs.append(x)
    return torch.stack(outs)


def _layers(tensors: Sequence[Tensor], kinds: Kinds) -> list[tuple[Any, ...]]:
    """(weight, bias, norm, low, bare) of every layer."""
    found, at = [], 0
    for normed, low, bare in kinds:
        size = 4 if normed else 2
        weight, bias, *norm = tensors[at : at + size]
        found.append((weight, bias, norm, low, bare))
        at += size
    return found


def _at(tensors: Sequence[Tensor], kinds: Kinds, e: int) -> list[tuple[Any, ...]]:
    return _layers([tensor[e] for tensor in tensors], kinds)


def _forward(
    x: Tensor, layers: list[tuple[Any, ...]], activation: str, kept: list[Tensor] | None
) -> Tensor:
    """One network. `kept` gets, for each layer, what its backward needs: see `_backward`."""
    for weight, bias, norm, low, bare in layers:
        before, x = x, x
        if norm:
            x, mean, rstd = _norm(x, x.shape[-1:], norm[0], norm[1], EPS)
            if kept is not None:
                kept += [before, mean, rstd]
        if not bare:
            if activation == "silu":
                if kept is not None:
                    kept.append(x)
                x = F.silu(x)
            else:
                x = x.relu_() if norm else x.relu()
        if low:
            x, weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
        if kept is not None:
            kept += [x, weight]
        x = F.linear(x, weight).float().add_(bias) if low else multiply(x, weight, bias)
    return x


class _Stacked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, activation: str, kinds: Kinds, which: tuple[int, ...], *tensors: Tensor
    ) -> Tensor:
        xs, params = tensors[: len(which)], tensors[len(which) :]
        ctx.how, ctx.kept = (activation, kinds, which), [[] for _ in which]
        ctx.save_for_backward(*tensors)
        return torch.stack(
            [
                _forward(x, _at(params, kinds, e), activation, kept)
                for x, e, kept in zip(xs, which, ctx.kept, strict=True)
            ]
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (activation, kinds, which), needed = ctx.how, ctx.needs_input_grad[3:]
        xs, params = ctx.saved_tensors[: len(which)], ctx.saved_tensors[len(which) :]
        if torch.is_grad_enabled():
            out = _plain(activation, kinds, which, xs, params)
            asked = [t for t, need in zip(ctx.saved_tensors, needed, strict=True) if need]
            found = iter(torch.autograd.grad(out, asked, grad, create_graph=True))
            return (None, None, None, *(next(found) if need else None for need in needed))
        x_grads: list[Tensor | None] = []
        found_by: list[list[Tensor | None]] = []  # gradients of each network's tensors
        for i, e in enumerate(which):
            found_by.append([None] * len(params))
            x_grad = _backward(
                grad[i],
                _at(params, kinds, e),
                activation,
                list(ctx.kept[i]),
                needed[i],
                needed[len(which) :],
                found_by[-1],
            )
            x_grads.append(x_grad)
        whole = which == tuple(range(len(params[0])))
        grads: list[Tensor | None] = []
        for param, parts in zip(params, zip(*found_by, strict=True), strict=True):
            if any(part is None for part in parts):
                grads.append(None)
            elif whole:
                grads.append(torch.stack(parts))
            else:
                some = param.new_zeros(param.shape)
                for e, part in zip(which, parts, strict=True):
                    some[e] += part
                grads.append(some)
        return (None, None, None, *x_grads, *grads)


def _backward(
    grad: Tensor,
    layers: list[tuple[Any, ...]],
    activation: str,
    kept: list[Tensor],
    need_x: bool,
    needed: Sequence[bool],
    out: list[Tensor | None],
) -> Tensor | None:
    """One network's gradients, of its tensors into `out`, and returned that of its input."""
    at = len(out)
    for i in reversed(range(len(layers))):
        _, _, norm, low, bare = layers[i]
        at -= 4 if norm else 2
        weight, x = kept.pop(), kept.pop()
        if needed[at + 1]:
            out[at + 1] = grad.sum(0)
        if low:
            grad = grad.to(torch.bfloat16)
        if needed[at]:
            out[at] = (grad.t() @ x).float() if low else weight_gradient(grad, x)
        if i == 0 and not need_x and not (norm and any(needed[at + 2 : at + 4])):
            return None
        grad = (grad @ weight).float() if low else multiply(grad, weight.t())
        if not bare:
            if activation == "silu":
                grad = torch.ops.aten.silu_backward(grad, kept.pop())
            else:
                grad = torch.ops.aten.threshold_backward(grad, x, 0)
        if norm:
            rstd, mean, before = kept.pop(), kept.pop(), kept.pop()
            mask = [need_x or i > 0, needed[at + 2], needed[at + 3]]
            grad, out[at + 2], out[at + 3] = _norm_backward(
                grad, before, before.shape[-1:], mean, rstd, norm[0], norm[1], mask
            )
    return grad
