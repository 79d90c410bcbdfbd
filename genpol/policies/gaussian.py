"""A Gaussian over action chunks with a mean and a std that depend on the observation.

loss = mean_D [ log std + (act - mean)^2 / (2 std^2) ] + log(2 pi) / 2. The std has a floor: where
demonstrations agree exactly it would run to zero, and a few steps would dominate the gradient.
Samples are clipped to [-1, 1] where actions lie there.

Shape legend: B observations, n candidates, D = H * A, F features.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from genpol.policies.architecture import Architecture
from genpol.policies.precision import Apply, exact
from offline.draws import normal

STD_FLOOR = 0.03


class GaussianHead(nn.Module):
    """p(x | features) = N(mean, std^2), independent in each dimension.

    Args:
        dim: D.
        features: F.
        architecture: not used.
        clip: whether actions lie in [-1, 1].
    """

    def __init__(self, dim: int, features: int, architecture: Architecture, clip: bool) -> None:
        super().__init__()
        self.dim, self.clip = dim, clip
        self.net = nn.Sequential(
            nn.Linear(features, features), nn.SiLU(), nn.Linear(features, 2 * dim)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F) -> mean and std, each (B, D)."""
        mean, raw = self.net(features).chunk(2, dim=-1)
        return mean, F.softplus(raw) + STD_FLOOR

    def loss(self, features: Tensor, x: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, F) and actions (B, D) -> (B,) negative log-density in nats per dimension."""
        mean, std = self(features)
        return (std.log() + 0.5 * ((x - mean) / std).square()).mean(-1) + 0.5 * math.log(
            2 * math.pi
        )

    def sample(
        self, features: Tensor, n: int, generator: Generator | None, apply: Apply = exact
    ) -> Tensor:
        """(B, F) -> (B, n, D); always in float32, there is no chain to be quick about."""
        return self.decode(features, normal((len(features), n, self.dim), generator, features))

    def decode(self, features: Tensor, noise: Tensor, apply: Apply = exact) -> Tensor:
        """(B, F) and standard normal (B, n, D) -> (B, n, D): mean + std * noise."""
        mean, std = self(features)
        x = torch.addcmul(mean[:, None], std[:, None], noise)
        return x.clamp_(-1, 1) if self.clip else x

    def mode(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, D): the mean."""
        mean, _ = self(features)
        return mean.clamp(-1, 1) if self.clip else mean
