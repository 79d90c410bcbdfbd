"""Sizes of our own policies; light to import, saved with each of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Sampler = Literal["ddpm", "ddim"]
ImageEncoder = Literal["small", "resnet34"]
Network = Literal["factored", "residual"]


@dataclass(frozen=True)
class Architecture:
    """Sizes of a `ChunkPolicy`. What runs once per observation is wide, what runs K times narrow.

    The residual network has the sizes it was published with; of the fields below it uses those of
    the chain and of images.
    """

    __pydantic_config__ = {"extra": "forbid"}  # when it is read from a document

    features: int = 512
    """Width of the observation encoder and the conditioner (F)."""
    encoder_layers: int = 2
    """Layers of the observation encoder."""
    width: int = 64
    """Of the trunk, which runs for every candidate and denoising step."""
    layers: int = 2
    """Hidden layers of the trunk."""
    denoising_steps: int = 10
    """Steps of the chain (T): DDPM steps, or Euler steps of a flow."""
    sampler: Sampler = "ddpm"
    """How a diffusion policy samples: "ddpm" ancestral, "ddim" deterministic given the noise."""
    image_encoder: ImageEncoder = "small"
    """Network for image observations."""
    network: Network = "factored"
    """Of a chain: "factored" (`genpol.policies.trunk`), or "residual", as published with EXPO
    (`genpol.policies.residual`)."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
