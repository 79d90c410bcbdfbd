"""Flow matching over action chunks, along straight lines.

Training (arXiv 2210.02747; rectified flow, arXiv 2209.03003 eq. 1): x_t = (1 - t) noise + t act,
t uniform, loss = mean_D (v_hat - (act - noise))^2. Sampling integrates dx = v dt from noise at
t = 0 to an action at t = 1 with Euler steps of 1 / T.

Shape legend: B observations, T steps, n candidates, D = H * A, F features, M modulations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from genpol.policies.architecture import Architecture
from genpol.policies.denoiser import denoiser
from genpol.policies.precision import Apply, exact
from offline.draws import normal, uniform


class FlowHead(nn.Module):
    """p(x | features) as a flow.

    Args:
        dim: D.
        features: F.
        architecture: sizes and T.
        clip: whether actions lie in [-1, 1].
    """

    def __init__(self, dim: int, features: int, architecture: Architecture, clip: bool) -> None:
        super().__init__()
        self.dim, self.clip = dim, clip
        self.num_steps = architecture.denoising_steps
        """Euler steps; may be changed after training, 2 to 5 are often enough."""
        self.trunk: Any
        self.conditioner: Any
        self.trunk, self.conditioner = denoiser(dim, features, architecture)

    def loss(self, features: Tensor, x: Tensor, generator: Generator | None) -> Tensor:
        """(B, F) and actions (B, D) -> (B,), at one random time each."""
        time = uniform((len(x),), generator, x)
        noise = normal(x.shape, generator, x)
        between = torch.lerp(noise, x, time[:, None])
        modulation = self.conditioner(features, self.conditioner.embed(time))
        return (self.trunk(between, modulation) - (x - noise)).square().mean(-1)

    def sample(
        self,
        features: Tensor,
        n: int,
        generator: Generator | None,
        apply: Apply = exact,
        steps: int | None = None,
    ) -> Tensor:
        """(B, F) -> (B, n, D), in `steps` Euler steps (default `num_steps`)."""
        noise = normal((len(features), n, self.dim), generator, features)
        return self.decode(features, noise, apply, steps)

    def mode(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, D): the flow of zero noise."""
        return self.decode(features, features.new_zeros(len(features), 1, self.dim))[:, 0]

    def decode(
        self, features: Tensor, noise: Tensor, apply: Apply = exact, steps: int | None = None
    ) -> Tensor:
        """(B, F) and standard normal (B, n, D) -> (B, n, D): where the flow takes that noise."""
        return self(features, noise, apply, steps or self.num_steps)

    def forward(self, features: Tensor, noise: Tensor, apply: Apply, steps: int) -> Tensor:
        """As `decode`: a whole chain, which draws nothing."""
        times = torch.arange(steps, device=features.device, dtype=features.dtype) / steps
        embedding = self.conditioner.embed(times)
        if len(noise) == 1:  # one axis less is faster
            modulations, x = self.conditioner(features, embedding[:, None], apply), noise[0]
        else:
            modulations = self.conditioner(features[:, None], embedding[:, None, None], apply)
            x = noise
        for modulation in modulations.unbind():
            x = torch.add(x, self.trunk(x, modulation, apply), alpha=1 / steps)
        x = x.view(noise.shape)
        return x.clamp_(-1, 1) if self.clip else x
