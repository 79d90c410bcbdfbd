"""A head that maps noise to an action in one pass; taught by another policy (`Student`).

    x = W h_L + gain * z + bias,  h_0 = z,  h_l = silu(scale_l * (W_l h_{l-1}) + shift_l)

the network of `genpol.policies.trunk` at one time, with the noise z in place of the noisy action.

Shape legend: B observations, n candidates, D = H * A, F features.
"""

from __future__ import annotations

from torch import Generator, Tensor, nn

from genpol.policies.architecture import Architecture
from genpol.policies.precision import Apply, exact
from genpol.policies.trunk import Conditioner, Trunk
from offline.draws import normal
from offline.errors import InputError

NO_LOSS = (
    "a one-step student cannot learn from actions, only from another policy: keep it frozen "
    "(--base-lr 0), or start from the flow that taught it"
)


class StudentHead(nn.Module):
    """x = f(features, noise).

    Args:
        dim: D.
        features: F.
        architecture: sizes.
        clip: whether actions lie in [-1, 1].
    """

    def __init__(self, dim: int, features: int, architecture: Architecture, clip: bool) -> None:
        super().__init__()
        self.dim, self.clip = dim, clip
        self.trunk = Trunk(dim, architecture.width, architecture.layers)
        self.conditioner = Conditioner(features, self.trunk)

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        """(B, F) and standard normal (B, n, D) -> (B, n, D), not clipped: distance teaches it."""
        start = self.conditioner.embed(features.new_zeros(1))
        return self.trunk(noise, self.conditioner(features, start)[:, None])

    def decode(self, features: Tensor, noise: Tensor, apply: Apply = exact) -> Tensor:
        """(B, F) and standard normal (B, n, D) -> (B, n, D); in float32, there is no chain."""
        x = self(features, noise)
        return x.clamp(-1, 1) if self.clip else x

    def sample(
        self, features: Tensor, n: int, generator: Generator | None, apply: Apply = exact
    ) -> Tensor:
        """(B, F) -> (B, n, D)."""
        return self.decode(features, normal((len(features), n, self.dim), generator, features))

    def mode(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, D): what zero noise becomes."""
        return self.decode(features, features.new_zeros(len(features), 1, self.dim))[:, 0]

    def loss(self, features: Tensor, x: Tensor, generator: Generator | None) -> Tensor:
        """Has none.

        Raises:
            InputError: always; an action does not say which noise it belongs to.
        """
        raise InputError(NO_LOSS)
