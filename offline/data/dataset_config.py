"""What learning from a dataset is told, whatever learns; light to import, for `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offline.option_check import require


@dataclass(frozen=True)
class DatasetConfig:
    """Settings that cloning a policy and training a critic have in common."""

    batch_size: int = 256
    """Chunks of the dataset per gradient step, at least 1."""
    action_chunk: int = 4
    """Actions that are proposed, scored and executed as one (H), at least 1. A critic steers
    policies whose chunks are at least as long as its own."""
    seed: int = 0
    """Seed of everything random."""
    scale: Literal["bounds", "p01_p99"] = "bounds"
    """What of each action dimension is mapped to [-1, 1]: its bounds, or the data between its 1st
    and 99th percentile."""
    obs_keys: tuple[str, ...] = ()
    """One-dimensional observations to use. Default: all."""
    image_keys: tuple[str, ...] = ()
    """Images to use, by the name of their observation. Default: none."""
    image_encoder: Literal["small", "resnet34"] = "small"
    """Network for images."""
    random_shift: int = 4
    """Largest random shift of images in training, in pixels."""
    memory_gb: float = 2.0
    """Memory for the dataset in GiB, above 0. A larger dataset is streamed from its files."""
    log_every: int = 100
    """Gradient steps between rows of metrics.csv, at least 1."""

    def check(self) -> None:
        """Check every number.

        Raises:
            InputError: names the option and the range it should be in.
        """
        for name in ("batch_size", "action_chunk", "log_every"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "memory_gb", self.memory_gb > 0, "above 0")
        require(self, "random_shift", self.random_shift >= 0, "at least 0")
