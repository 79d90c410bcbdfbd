"""Precision of the matrix products in a denoising chain: float32 or bfloat16.

bfloat16 halves the time of a large product on some CPUs with AVX512-BF16 (470 against 240 GFLOP/s
on one core). On others it takes twice the time, and fifty times where it has to be converted
in software; `genpol.runs.processor` measures it, and commands warn. Weights stay float32 and are
cast once per chain, so they are always the newest; the action that is denoised stays float32 too,
and so do normalisation layers and residual sums.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Apply = Callable[[nn.Module, Tensor], Tensor]


def exact(layer: nn.Module, x: Tensor) -> Tensor:
    """(..., inputs) -> (..., outputs): the linear layer as it is."""
    return layer(x)


def applied_in(dtype: torch.dtype) -> Apply:
    """How to apply linear layers in `dtype` during one chain.

    Below float32 the result is only for inference, and the returned tensors have that dtype.
    """
    return exact if dtype == torch.float32 else _Cast(dtype)


class _Cast:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.weights: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        if layer not in self.weights:
            weight, bias = layer.weight, layer.bias
            low = None if bias is None else bias.to(self.dtype)
            self.weights[layer] = weight.to(self.dtype), low
        return F.linear(x.to(self.dtype), *self.weights[layer])
