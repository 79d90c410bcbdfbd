"""What learning from a dataset is told, whatever learns; light to import, for `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offline.option_check import require


@dataclass(frozen=True)
class DatasetConfig:
    """Settings that cloning a policy and training a critic have in common."""

    batch_size: int = 256
    """Chunks per gradient step."""
    action_chunk: int = 4
    """Actions proposed, scored and executed together (H); a critic steers policies that propose at
    least as many as it scores."""
    seed: int = 0
    """Of everything random."""
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
        for name in ("batch_size", "action_chunk", "log_every"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "memory_gb", self.memory_gb > 0, "above 0")
        require(self, "random_shift", self.random_shift >= 0, "at least 0")
