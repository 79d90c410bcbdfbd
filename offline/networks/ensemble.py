"""Critic heads as stacked parameters: a subset of them can be run without the others.

Their layers' singular values can be bounded (`offline.critics.lipschitz`).

Shape legend: B batch, K candidates, H action chunk, A action dimension, E critic ensemble,
C heads asked for, N hidden units, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offline.draws import moved
from offline.networks.heads import some
from offline.networks.linear import linear
from offline.networks.normalizer import Change
from offline.networks.spectral import constrain, tighten
from offline.networks.stacked import Layer, run

Dtype = Literal["float32", "bfloat16"]

# Rows (states times candidates) up to which one batched matmul over the heads beats a loop over
# them on a CPU, where it saves calls; with more rows the loop keeps its activations in cache.
# Milliseconds of ten heads of 3 x 256, batched and looped: .40 and .59 at 1 row, 1.41 and 1.57 at
# 24, 1.76 and 1.76 at 32, 10.5 and 6.3 at 256, 350 and 99 at 4096; of two heads .09 and .11 at 1
# row, .25 and .26 at 24, .31 and .29 at 32, 41 and 19 at 4096.
FEW_ROWS = 24


class StackedHeads(nn.Module):
    """E heads Q_e(features, chunk), each (Linear, LayerNorm, ReLU) x layers, Linear.

    The functions, their initial distribution and the two parts of the first layer are those of
    `offline.networks.heads.CriticHeads`, whose heads are modules of their own. Here each layer is
    one parameter with E in front, so that an optimiser and an average have few tensors to visit.

    Args:
        features: F.
        action: H * A.
        hidden: units of each hidden layer.
        ensemble: E.
        dtype: "bfloat16" multiplies hidden layers in it while learning, that is in training mode
            with gradients enabled; weights, LayerNorm, first and last layer stay float32. Scores
            without gradient never use it: it resolves .25 at |Q| = 40, more than candidates differ
            by. Ten heads of 3 x 256 took 16.4 ms instead of 21.3 for forward and backward of a
            batch of 256, on a CPU with AVX512-BF16.
        bound: largest singular value of every layer, kept by `tighten`; there is no LayerNorm
            then, and the first layer is one matrix (E, N, F + H * A). See
            `offline.networks.spectral`.
        layer_norm: False leaves LayerNorm out.
    """

    def __init__(
        self,
        features: int,
        action: int,
        hidden: Sequence[int] = (256, 256),
        ensemble: int = 2,
        dtype: Dtype = "float32",
        bound: float | None = None,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        self.ensemble, self.dtype, self.bound, self.action = ensemble, dtype, bound, action

        def uniform(*shape: int, inputs: int) -> nn.Parameter:
            bound = 1 / math.sqrt(inputs)  # as nn.Linear
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        both = features + action  # as one nn.Linear over both
        first, sizes = ensemble * hidden[0], list(pairwise((*hidden, 1)))
        normed = hidden if layer_norm and bound is None else ()
        if bound is None:
            self.obs_weight = uniform(first, features, inputs=both)
            self.obs_bias = uniform(first, inputs=both)
            self.act_weight = uniform(ensemble, hidden[0], action, inputs=both)
        else:
            self.first = uniform(ensemble, hidden[0], both, inputs=both)
            self.obs_bias = uniform(first, inputs=both)
        self.weights = nn.ParameterList(uniform(ensemble, b, a, inputs=a) for a, b in sizes)
        self.biases = nn.ParameterList(uniform(ensemble, b, inputs=a) for a, b in sizes)
        self.scales = nn.ParameterList(torch.ones(ensemble, size) for size in normed)
        self.shifts = nn.ParameterList(torch.zeros(ensemble, size) for size in normed)
        if bound is not None:
            constrain(self, "first", bound)
            for i in range(len(sizes)):
                constrain(self.weights, str(i), bound)

    def first_layer(self) -> tuple[Tensor, Tensor]:
        """The first layer's two parts: of the state (E, N, F) and of the action (E, N, H * A)."""
        if self.bound is None:
            return self.obs_weight.unflatten(0, (self.ensemble, -1)), self.act_weight
        first = self.first
        return first[..., : -self.action], first[..., -self.action :]

    @torch.no_grad()
    def absorb(self, change: Change) -> None:
        """Stay the function that it is where observations are standardised otherwise; with a bound,
        as far as the layer stays within it."""
        if self.bound is None:
            change.absorb(self.obs_weight, self.obs_bias)
            return
        first = self.first.clone()
        change.absorb(first.flatten(0, 1), self.obs_bias)
        self.first = first

    def matrices(self) -> list[Tensor]:
        """Every layer's weights, (E, outputs, inputs); the first one's parts side by side."""
        first = torch.cat(self.first_layer(), dim=-1) if self.bound is None else self.first
        return [first, *self.weights]

    def tighten(self) -> None:
        """Where there is a bound, bring every layer back within it; once after each step."""
        if self.bound is not None:
            tighten(self)

    def project(self, features: Tensor, which: Tensor | None = None) -> Tensor:
        """(B, F) -> (B, C * N), the state's part of each head's first layer.

        Args:
            which: (C,) indices of heads; None is all E, in order.
        """
        weight, bias = self.first_layer()[0].flatten(0, 1), self.obs_bias
        if which is not None:
            weight, bias = some(weight, bias, which, self.ensemble)
        return linear(features, weight.contiguous(), bias)  # oneDNN crawls over part of a matrix

    def forward(self, projected: Tensor, act: Tensor, which: Tensor | None = None) -> Tensor:
        """(B, C * N) from `project` of the same heads, and (B, K, H, A) -> (C, B, K)."""
        count = self.ensemble if which is None else len(which)
        state, flat = projected.unflatten(-1, (count, -1)), act.flatten(2)
        few_rows = which is None and act.shape[0] * act.shape[1] <= FEW_ROWS  # `which` copies
        if few_rows or act.device.type != "cpu":
            return self._batched(state, flat, which)
        return self._looped(state, flat, which)

    def _looped(self, state: Tensor, act: Tensor, which: Tensor | None) -> Tensor:
        """(B, C, N) and (B, K, H * A) -> (C, B, K), one head after another."""
        low = self._low_precision()
        # unbind: the gradient of each weight[e] would be as large as that of all heads together
        act_weight = self.first_layer()[1]
        weights = act_weight.unbind() if torch.is_grad_enabled() else act_weight
        heads = range(self.ensemble) if which is None else which.tolist()
        rows, xs = act.flatten(0, 1), []
        for part, e in zip(state.unbind(1), heads, strict=True):
            if act.shape[1] == 1:
                x = torch.addmm(part, rows, weights[e].t())
            else:
                x = F.linear(rows, weights[e]).unflatten(0, act.shape[:2]).add_(part[:, None])
                x = x.flatten(0, 1)
            xs.append(x)
        last = len(self.weights) - 1
        layers = [
            Layer(*tensors, low=low and i < last)
            for i, tensors in enumerate(self._layers(low=False))
        ]
        return run(xs, layers, "relu", heads).view(-1, *act.shape[:2])

    def _batched(self, state: Tensor, act: Tensor, which: Tensor | None) -> Tensor:
        """(B, C, N) and (B, K, H * A) -> (C, B, K), all heads at once."""

        heads = None if which is None else moved(which, act.device)

        def of(p: Tensor) -> Tensor:
            return p if heads is None else p[heads]

        x = torch.matmul(act.flatten(0, 1), of(self.first_layer()[1]).mT).unflatten(
            1, act.shape[:2]
        )
        x = (x + state.transpose(0, 1)[:, :, None]).flatten(1, 2)
        for layer in self._layers(self._low_precision()):
            weight, bias, *norm = (of(p) for p in layer)
            if norm:
                scale, shift = norm
                x = torch.addcmul(shift[:, None], F.layer_norm(x, x.shape[-1:]), scale[:, None])
            x = F.relu_(x)
            if weight.dtype == x.dtype:
                x = torch.baddbmm(bias[:, None], x, weight.mT)
            else:
                x = torch.bmm(x.to(weight.dtype), weight.mT).to(x.dtype).add_(bias[:, None])
        return x.view(-1, *act.shape[:2])

    def _layers(self, low: bool) -> list[tuple[Tensor, ...]]:
        """Weight and bias of every later layer; scale and shift of the LayerNorm before it."""
        weights = list(self.weights)
        if low:
            weights[:-1] = [weight.to(torch.bfloat16) for weight in weights[:-1]]
        norms = (self.scales, self.shifts) if self.scales else ()
        return list(zip(weights, self.biases, *norms, strict=True))

    def _low_precision(self) -> bool:
        return self.dtype == "bfloat16" and self.training and torch.is_grad_enabled()
