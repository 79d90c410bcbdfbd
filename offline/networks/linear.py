"""x W^T + b by the faster of the CPU's two libraries, with gradients.

PyTorch multiplies fp32 matrices with MKL, which is slow on processors that are not Intel's: 105
GFLOP/s on one core of an AMD EPYC (Zen 5), where oneDNN, which PyTorch brings for convolutions and
bf16, does 240. On Intel's the two are alike, and so they are on AMD's without AVX-512 (59 GFLOP/s).
oneDNN takes 10 microseconds longer to start, so small products stay where they are. Where the
processor has no AVX2, oneDNN has no fast code for it, and all products stay. Both round differently
in the last bits; which one computes depends on the processor and on shapes alone, and nothing is
measured, so a repeated run repeats its bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = 2**21  # multiplications from which on oneDNN is faster, measured
TALL = 2**19  # and from which on a gradient's order matters

try:
    _onednn = torch.ops.mkldnn._linear_pointwise.default
    _AVAILABLE = torch.backends.mkldnn.is_available() and (
        torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    )
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
    suits = _suits(x, weight)
    if (suits or _tall(x, weight)) and torch.is_grad_enabled():
        if any(t is not None and t.requires_grad for t in (x, weight, bias)):
            return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias) if suits else F.linear(x, weight, bias)


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


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b without gradients, of float32 matrices on any device."""
    if _suits(x, weight):
        return _product(x, weight, bias)
    return F.linear(x, weight, bias)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """(outputs, inputs): grad^T x of (B, outputs) and (B, inputs), without gradients.

    The longer side of the result goes last: MKL takes 208 microseconds for (512, 256) by (256, 11),
    and 50 for the transpose.
    """
    if grad.shape[1] > x.shape[1]:
        return multiply(x.t(), grad.t()).t()
    return multiply(grad.t(), x.t())


def _tall(x: Tensor, weight: Tensor) -> bool:
    """Whether the order of `weight_gradient` is worth a node of our own."""
    return (
        weight.requires_grad
        and len(weight) > 4 * weight.shape[1]
        and x.numel() * len(weight) >= TALL
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
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        flat, rows = grad.flatten(0, -2), x.flatten(0, -2)
        again = torch.is_grad_enabled()  # a gradient's gradient is asked for (create_graph)
        by_weight = None
        if need_weight:
            by_weight = linear(flat.t(), rows.t()) if again else weight_gradient(flat, rows)
        return (
            (linear if again else multiply)(grad, weight.t()) if need_x else None,
            by_weight,
            flat.sum(0) if need_bias else None,
        )
