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
    """Kind of policy."""
    steps: int = 4000
    """Gradient steps, at least 1."""
    filter: Literal["all", "success"] = "all"
    """Episodes that are cloned: all, or the successful ones (filtered cloning)."""
    lr: float = 3e-4
    """Learning rate at its peak, above 0. It is warmed up, then falls to zero along a cosine."""
    warmup: int = 200
    """Gradient steps of warming up. A tenth of --steps is used where that is less."""
    weight_decay: float = 0.01
    """Weight decay of AdamW, at least 0."""
    ema: float = 0.999
    """Decay of the moving average of the weights, at least 0 and below 1. The average is kept."""
    features: int = 512
    """Units of the observation encoder, at least 1."""
    width: int = 64
    """Units of the part of the network that runs for every candidate and denoising step, at least
    1."""
    layers: int = 2
    """Hidden layers of the part of the network that runs for every candidate and denoising step, at
    least 1."""
    denoising_steps: int = 10
    """Steps of the denoising chain (T), at least 1 (diffusion, flow)."""
    sampler: Literal["ddpm", "ddim"] = "ddpm"
    """How a diffusion policy samples: with noise at every step (ddpm), or deterministically given
    the first noise (ddim)."""

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
