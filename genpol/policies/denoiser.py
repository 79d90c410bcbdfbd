"""Makes the networks of a denoising chain, by name.

Both pairs have the same interface. `conditioner.embed` (T,) -> (T, .) and `conditioner` are called
once per chain, for all of its steps; `trunk` for every candidate and step.
"""

from __future__ import annotations

from genpol.policies.architecture import Architecture
from genpol.policies.residual import ResidualConditioner, ResidualTrunk
from genpol.policies.trunk import Conditioner, Trunk
from offline.errors import InputError, did_you_mean


def denoiser(
    dim: int, features: int, architecture: Architecture
) -> tuple[Trunk, Conditioner] | tuple[ResidualTrunk, ResidualConditioner]:
    """Trunk and conditioner of `architecture.network`, for D = dim and F = features.

    Raises:
        InputError: no such network.
    """
    if architecture.network == "residual":
        wide = ResidualTrunk(dim)
        return wide, ResidualConditioner(features, wide, architecture.denoising_steps)
    if architecture.network != "factored":
        name = str(architecture.network)
        raise InputError(f'unknown network "{name}".{did_you_mean(name, ("factored", "residual"))}')
    trunk = Trunk(dim, architecture.width, architecture.layers)
    return trunk, Conditioner(features, trunk)
