"""What learning from a dataset is told, whatever learns; light to import, for `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offline.option_check import check_numbers
from offline.ranges import Count, Few, Positive, Seed, Size


@dataclass(frozen=True)
class DatasetConfig:
    """Settings that cloning a policy and training a critic have in common."""

    batch_size: Count = 256
    """Chunks of the dataset per gradient step, at least 1."""
    action_chunk: Size = 4
    """Actions that are proposed, scored and executed as one (H), at least 1. A critic steers
    policies whose chunks are at least as long as its own."""
    seed: Seed = 0
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
    random_shift: Few = 4
    """Largest random shift of images in training, in pixels."""
    memory_gb: Positive = 2.0
    """Memory for the dataset in GiB, above 0. A larger dataset is streamed from its files."""
    log_every: Count = 100
    """Gradient steps between rows of metrics.csv, at least 1."""

    def check(self) -> None:
        """Check every number.

        Raises:
            InputError: names the option and the range it should be in.
        """
        check_numbers(self)
