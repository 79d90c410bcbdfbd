"""Settings of learning an image value; light to import, so the command line stays quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from diffusion.config import Count, Positive, Seed


@dataclass(frozen=True)
class ImageValueConfig:
    """Settings of `diffusion.values.learning.ValueLearning` and of what it learns from."""

    seed: Seed = 0
    """Seed of everything random."""
    num_prompts: Count = 192
    """Training prompts whose images are drawn, at least 1."""
    images_per_prompt: Annotated[int, Ge(2), Le(65_536)] = 8
    """Images drawn for each prompt, at least 2."""
    other_prompts: Annotated[int, Ge(0), Le(65_536)] = 8
    """Other training prompts that each image is judged against as well, at least 0."""
    num_held_out: Count = 16
    """Held-out prompts that the value is judged by, at least 1."""
    states: Annotated[int, Ge(2), Le(65_536)] = 12
    """States of each chain that are kept, at least 2."""
    steps: Count = 800
    """Gradient steps, at least 1."""
    batch_size: Count = 128
    """Latents of a gradient step, at least 1."""
    lr: Positive = 1e-3
    """Learning rate, above 0."""
    channels: Annotated[int, Ge(1), Le(65_536)] = 64
    """Channels of the network, at least 1."""
    blocks: Annotated[int, Ge(1), Le(256)] = 3
    """Residual blocks of the network, at least 1."""
