"""The denoising network, split by how often each part has to run.

A chain of T steps on K candidates evaluates a network on (observation, step, candidate). Most of
what there is to know depends on the observation and the step alone, so it is computed once per
chain, all steps in one batch (`Conditioner`); what runs for every candidate and step is narrow
(`Trunk`). Its output has a part that is linear in the candidate, with coefficients from the
conditioner:

    h_0 = x,  h_l = silu(scale_l * (W_l h_{l-1}) + shift_l),  out = W h_L + gain * x + bias

For Gaussian data (one mode) the linear part alone can be exact; the hidden layers add the rest.

Shape legend: B observations, T steps, n candidates, D = H * A, F features, M modulations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpol.policies.precision import Apply, exact
from offline.networks.linear import Linear

FREQUENCIES = 32
MAX_FREQUENCY = 1000.0


class Trunk(nn.Module):
    """The part that runs for every candidate and step; see the top of the file.

    Args:
        dim: D.
        width: of the hidden layers.
        layers: how many.
    """

    def __init__(self, dim: int, width: int, layers: int) -> None:
        super().__init__()
        inputs = [dim] + [width] * (layers - 1)
        self.hidden = nn.ModuleList(Linear(size, width, bias=False) for size in inputs)
        self.out = Linear(width, dim, bias=False)
        self.sizes = [width] * (2 * layers) + [dim, dim]  # of the modulations

    def forward(self, x: Tensor, modulation: Tensor, apply: Apply = exact) -> Tensor:
        """(..., D) and (..., M), which broadcast -> (..., D).

        Always in float32: elementwise work outweighs products this narrow, so `apply` is not used.
        """
        *films, gain, bias = modulation.split(self.sizes, dim=-1)
        h = x
        for i, layer in enumerate(self.hidden):
            h = F.silu(torch.addcmul(films[2 * i + 1], layer(h), films[2 * i]))
        return torch.addcmul(self.out(h) + bias, x, gain)


class Conditioner(nn.Module):
    """Features of the observation and a time in [0, 1] to the modulations of a trunk.

    Args:
        features: F.
        trunk: whose modulations these are.
    """

    frequencies: Tensor

    def __init__(self, features: int, trunk: Trunk) -> None:
        super().__init__()
        self.register_buffer(
            "frequencies",
            torch.exp(torch.linspace(0, math.log(MAX_FREQUENCY), FREQUENCIES)),
            persistent=False,
        )
        self.time = nn.Sequential(
            Linear(2 * FREQUENCIES, features), nn.SiLU(), Linear(features, features)
        )
        self.mix = nn.Sequential(nn.SiLU(), Linear(features, features), nn.SiLU())
        self.out = Linear(features, sum(trunk.sizes))
        nn.init.normal_(self.out.weight, std=0.02)  # a plain trunk at first, the same everywhere
        with torch.no_grad():
            for i, part in enumerate(self.out.bias.split(trunk.sizes)):
                part.fill_(1.0 if i % 2 == 0 and i < len(trunk.sizes) - 2 else 0.0)

    def embed(self, time: Tensor) -> Tensor:
        """(T,) times in [0, 1] -> (T, F)."""
        angles = time[:, None] * self.frequencies
        return self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))

    def forward(self, features: Tensor, embedding: Tensor, apply: Apply = exact) -> Tensor:
        """Observations (..., F) and times (..., F), which broadcast -> (..., M)."""
        first, layer, second = self.mix
        hidden = second(apply(layer, first(features + embedding)))
        return apply(self.out, hidden).to(features.dtype)
