"""Networks over state features and action chunks, sized for scoring many candidates per state.

Shape legend: B batch, K candidates, H action chunk, A action dimension, E critic ensemble,
N hidden units, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offline.draws import moved, normal
from offline.errors import SpecError
from offline.networks.linear import Linear
from offline.networks.normalizer import Change
from offline.networks.stacked import Layer, run


class Head(nn.Module):
    """One Q(features, chunk): (Linear, LayerNorm, ReLU) x layers, Linear, less the state's part."""

    def __init__(self, action: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.act_in = nn.Linear(action, hidden[0], bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in hidden)
        self.layers = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(hidden, (*hidden[1:], 1), strict=True)
        )

    def forward(self, state: Tensor, act: Tensor) -> Tensor:
        """State's part (B, N) and flat chunks (B, K, H * A) -> (B, K)."""
        # Functions rather than module calls: those were a fifth of the time for 32 candidates.
        x = F.linear(act, self.act_in.weight).add_(state[:, None])
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
            x = F.linear(x.relu_(), layer.weight, layer.bias)
        return x.squeeze(-1)


class CriticHeads(nn.Module):
    """An ensemble of Q(features, chunk).

    The first layer is kept in two parts, W [f, a] = W_f f + W_a a. `project` computes the part
    of the state, once; `forward` adds that of each candidate. Together they equal the plain layer.

    Heads run one after another: on a CPU that took 38 ms where one batched matmul over E took 61
    (256 states, 13 chunks, two heads, forward and backward), because activations stay in cache.

    Args:
        features: F.
        action: H * A.
        hidden: units of each hidden layer.
        ensemble: E.
    """

    def __init__(
        self, features: int, action: int, hidden: Sequence[int] = (256, 256), ensemble: int = 2
    ) -> None:
        super().__init__()
        self.action = action
        self.obs_in = nn.Linear(features, ensemble * hidden[0])
        self.heads = nn.ModuleList(Head(action, hidden) for _ in range(ensemble))
        bound = 1 / math.sqrt(features + action)  # as one nn.Linear over both
        for tensor in (
            self.obs_in.weight,
            self.obs_in.bias,
            *(h.act_in.weight for h in self.heads),
        ):
            nn.init.uniform_(tensor, -bound, bound)

    def project(self, features: Tensor, which: Tensor | None = None) -> Tensor:
        """(B, F) -> (B, E * N), the state's part of every head's first layer.

        Args:
            which: (C,) indices of heads, for (B, C * N); None is all E, in order.
        """
        if which is None:
            return self.obs_in(features)
        return F.linear(
            features, *some(self.obs_in.weight, self.obs_in.bias, which, len(self.heads))
        )

    def forward(self, projected: Tensor, act: Tensor, which: Tensor | None = None) -> Tensor:
        """(B, E * N) from `project` and (B, K, H, A) -> (E, B, K).

        Args:
            which: (C,) as passed to `project`; the result is (C, B, K).

        Raises:
            SpecError: another chunk length or action dimension than trained with.
        """
        if act.ndim != 4 or act.shape[2] * act.shape[3] != self.action:
            raise SpecError(
                f"the critic scores chunks (B, K, H, A) with H * A = {self.action}, received "
                f"{tuple(act.shape)}: is the action chunk another one than in training?"
            )
        flat = act.flatten(2)
        heads = list(self.heads) if which is None else [self.heads[e] for e in which.tolist()]
        states = projected.chunk(len(heads), dim=-1)
        return torch.stack([h(s, flat) for h, s in zip(heads, states, strict=True)])

    def absorb(self, change: Change) -> None:
        """Stay the function that it is where observations are standardised otherwise."""
        change.absorb(self.obs_in.weight, self.obs_in.bias)

    def first_layer(self) -> tuple[Tensor, Tensor]:
        """The first layer's two parts: of the state (E, N, F) and of the action (E, N, H * A)."""
        act = torch.stack([head.act_in.weight for head in self.heads])
        return self.obs_in.weight.unflatten(0, (len(self.heads), -1)), act

    def matrices(self) -> list[Tensor]:
        """Every layer's weights, (E, outputs, inputs); the first one's parts side by side."""
        later = zip(*(head.layers for head in self.heads), strict=True)
        layers = [torch.stack([layer.weight for layer in level]) for level in later]
        return [torch.cat(self.first_layer(), dim=-1), *layers]


def some(weight: Tensor, bias: Tensor, which: Tensor, ensemble: int) -> tuple[Tensor, Tensor]:
    """Of E layers side by side, weight (E * N, F) and bias (E * N,), those in `which` (C,)."""
    which = moved(which, weight.device)
    few = weight.unflatten(0, (ensemble, -1))[which], bias.unflatten(0, (ensemble, -1))[which]
    return few[0].flatten(0, 1), few[1].flatten(0, 1)


class Mlp(nn.Sequential):
    """What `mlp` makes."""

    def absorb(self, change: Change) -> None:
        """Stay the function that it is where observations are standardised otherwise."""
        first = self[0]
        assert isinstance(first, nn.Linear)
        change.absorb(first.weight, first.bias)


def mlp(inputs: int, hidden: Sequence[int], outputs: int, *, layer_norm: bool = True) -> Mlp:
    """(Linear, LayerNorm, ReLU) x layers, Linear; LayerNorm may be left out."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [Linear(inputs, size), *([nn.LayerNorm(size)] if layer_norm else []), nn.ReLU()]
        inputs = size
    return Mlp(*layers, Linear(inputs, outputs))


def run_mlp(net: nn.Sequential, x: Tensor) -> Tensor:
    """What `net`, made by `mlp`, gives for (B, inputs), in fewer steps."""
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    norms: list[tuple[Tensor, ...]] = [
        (layer.weight, layer.bias) for layer in net if isinstance(layer, nn.LayerNorm)
    ]
    later = [
        Layer(*(p[None] for p in (layer.weight, layer.bias, *norm)))
        for norm, layer in zip(norms or [()] * (len(layers) - 1), layers[1:], strict=True)
    ]
    return run([layers[0](x)], later, "relu")[0]


class TanhGaussian(nn.Module):
    """A policy tanh(Normal(mean(f), std(f))) over flat chunks, in (-1, 1).

    Args:
        features: F.
        action: H * A.
        hidden: units of each hidden layer.
        layer_norm: of the hidden layers.
    """

    LOG_STD = (-5.0, 2.0)

    def __init__(
        self,
        features: int,
        action: int,
        hidden: Sequence[int] = (256, 256),
        *,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        self.net = mlp(features, hidden, 2 * action, layer_norm=layer_norm)
        self.layer_norm = layer_norm

    def absorb(self, change: Change) -> None:
        """Stay the function that it is where observations are standardised otherwise."""
        self.net.absorb(change)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F) -> mean and log std before the tanh, each (B, H * A)."""
        mean, log_std = run_mlp(self.net, features).chunk(2, dim=-1)
        return mean, log_std.clamp(*self.LOG_STD)

    def sample(
        self, features: Tensor, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Reparametrised draws (B, n, H * A) and their log-densities (B, n)."""
        mean, log_std = self(features)
        noise = normal((len(mean), n, mean.shape[-1]), generator, mean)
        u = mean[:, None] + log_std.exp()[:, None] * noise
        return torch.tanh(u), tanh_normal_log_prob(u, noise, log_std[:, None])

    def log_prob(self, features: Tensor, action: Tensor, bound: float = 0.98) -> Tensor:
        """Log-density (B,) of actions (B, H * A); pulled within `bound`, as +-1 has none."""
        mean, log_std = self(features)
        u = torch.atanh(action.clamp(-bound, bound))
        return tanh_normal_log_prob(u, (u - mean) / log_std.exp(), log_std)


def tanh_normal_log_prob(u: Tensor, noise: Tensor, log_std: Tensor) -> Tensor:
    """log p(tanh(u)) for u = mean + std * noise; sums the last axis.

    log N(noise; 0, 1) - log std - log(1 - tanh(u)^2), the last as 2 (log 2 - u - softplus(-2u)),
    which does not lose its digits at large |u|.
    """
    normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    squash = 2 * (math.log(2) - u - F.softplus(-2 * u))
    return (normal - squash).sum(-1)
