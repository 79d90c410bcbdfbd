"""Every setting of behaviour cloning; light to import, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offline.option_check import require


@dataclass(frozen=True)
class CloneConfig:
    """Settings of `genpol.policies.cloning.clone`."""

    policy: Literal["diffusion", "flow", "gaussian"] = "diffusion"
    """What kind of policy."""
    steps: int = 4000
    """Gradient steps."""
    batch_size: int = 256
    """Observations per step."""
    action_chunk: int = 4
    """Actions proposed and executed together (H)."""
    filter: Literal["all", "success"] = "all"
    """"success": clone only the episodes that succeeded (filtered cloning)."""
    seed: int = 0
    """Of everything random."""
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
    scale: Literal["bounds", "p01_p99"] = "bounds"
    """What of an action dimension is mapped to [-1, 1]."""
    obs_keys: tuple[str, ...] = ()
    """One-dimensional observations to use; default all."""
    image_keys: tuple[str, ...] = ()
    """Images to use; default none."""
    image_encoder: Literal["small", "resnet34"] = "small"
    """Network for images."""
    random_shift: int = 4
    """Pixels by which images are shifted at random in training."""
    memory_gb: float = 2.0
    """Datasets larger than this are streamed."""
    log_every: int = 100
    """Steps between logged rows."""

    def check(self) -> None:
        """Check every number.

        Raises:
            InputError: names the option and the range it should be in.
        """
        for name in (
            "steps",
            "batch_size",
            "action_chunk",
            "features",
            "width",
            "layers",
            "denoising_steps",
            "log_every",
        ):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr", "memory_gb"):
            require(self, name, getattr(self, name) > 0, "above 0")
        for name in ("weight_decay", "random_shift", "warmup"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        require(self, "ema", 0 <= self.ema < 1, "at least 0 and below 1")
