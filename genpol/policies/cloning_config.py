"""Every setting of behaviour cloning; light to import, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offline.data.dataset_config import DatasetConfig
from offline.ranges import Amount, Count, Decay, NotNegative, Positive, Size


@dataclass(frozen=True)
class CloneConfig(DatasetConfig):
    """Settings of `genpol.policies.cloning.clone`."""

    policy: Literal["diffusion", "flow", "gaussian"] = "diffusion"
    """Kind of policy."""
    steps: Count = 4000
    """Gradient steps, at least 1."""
    filter: Literal["all", "success"] = "all"
    """Episodes that are cloned: all, or the successful ones (filtered cloning)."""
    lr: Positive = 3e-4
    """Learning rate at its peak, above 0. It is warmed up, then falls to zero along a cosine."""
    warmup: Amount = 200
    """Gradient steps of warming up. A tenth of --steps is used where that is less."""
    weight_decay: NotNegative = 0.01
    """Weight decay of AdamW, at least 0."""
    ema: Decay = 0.999
    """Decay of the moving average of the weights, at least 0 and below 1. The average is kept."""
    features: Size = 512
    """Units of the observation encoder, at least 1."""
    width: Size = 64
    """Units of the part of the network that runs for every candidate and denoising step, at least
    1."""
    layers: Size = 2
    """Hidden layers of the part of the network that runs for every candidate and denoising step, at
    least 1."""
    denoising_steps: Size = 10
    """Steps of the denoising chain (T), at least 1 (diffusion, flow)."""
    sampler: Literal["ddpm", "ddim"] = "ddpm"
    """How a diffusion policy samples: with noise at every step (ddpm), or deterministically given
    the first noise (ddim)."""
