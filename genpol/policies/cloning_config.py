"""Every setting of behaviour cloning; light to import, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offline.data.dataset_config import DatasetConfig
from offline.option_check import require


@dataclass(frozen=True)
class CloneConfig(DatasetConfig):
    """Settings of `genpol.policies.cloning.clone`."""

    policy: Literal["diffusion", "flow", "gaussian"] = "diffusion"
    """What kind of policy."""
    steps: int = 4000
    """Gradient steps."""
    filter: Literal["all", "success"] = "all"
    """"success": clone only the episodes that succeeded (filtered cloning)."""
    lr: float = 3e-4
    """Peak learning rate; warmed up, then a cosine to zero."""
    warmup: int = 200
    """Steps of warming up; a tenth of the steps if that is less."""
    weight_decay: float = 0.01
    """Of AdamW."""
    ema: float = 0.999
    """Decay of the average of the weights, which is what is kept."""
    features: int = 512
    """Width of the observation encoder."""
    width: int = 64
    """Width of the part of the network that runs for every candidate and denoising step."""
    layers: int = 2
    """Its hidden layers."""
    denoising_steps: int = 10
    """Steps of the chain (diffusion, flow)."""
    sampler: Literal["ddpm", "ddim"] = "ddpm"
    """How a diffusion policy samples: ancestral, or deterministic given the initial noise."""

    def check(self) -> None:
        """Check every number.

        Raises:
            InputError: names the option and the range it should be in.
        """
        super().check()
        for name in ("steps", "features", "width", "layers", "denoising_steps"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "lr", self.lr > 0, "above 0")
        for name in ("weight_decay", "warmup"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        require(self, "ema", 0 <= self.ema < 1, "at least 0 and below 1")
