"""x W^T + b by the faster of the CPU's two libraries, with gradients.

PyTorch multiplies fp32 matrices with MKL, which is slow on processors that are not Intel's: 105
GFLOP/s on one core of an AMD EPYC (Zen 5), where oneDNN, which PyTorch brings for convolutions and
bf16, does 240. On Intel's the two are alike. oneDNN takes 10 microseconds longer to start, so small
products stay where they are. Both round differently in the last bits; which one computes depends
on shapes alone, so a repeated run repeats its bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = 2**21  # multiplications from which on oneDNN is faster, measured

try:
    _onednn = torch.ops.mkldnn._linear_pointwise.default
    _AVAILABLE = torch.backends.mkldnn.is_available()
except AttributeError:  # a build of PyTorch without oneDNN
    _AVAILABLE = False


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, as `torch.nn.functional.linear`.

    Args:
        x: (..., inputs).
        weight: (outputs, inputs).
        bias: (outputs,).

    Returns:
        (..., outputs)
    """
    if not _suits(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    ):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`; the same weights under the same names."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return linear(input, self.weight, self.bias)


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        _AVAILABLE
        and x.numel() * len(weight) >= SMALL
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _onednn(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        flat = grad.flatten(0, -2)
        return (
            _differentiable(grad, weight.t()) if need_x else None,
            _differentiable(flat.t(), x.flatten(0, -2).t()) if need_weight else None,
            flat.sum(0) if need_bias else None,
        )


def _differentiable(x: Tensor, weight: Tensor) -> Tensor:
    """The product, itself a `_Linear` where a gradient's gradient is asked for (create_graph)."""
    return _Linear.apply(x, weight, None) if torch.is_grad_enabled() else _product(x, weight)
