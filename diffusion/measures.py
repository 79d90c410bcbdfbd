"""What is measured beside the objective: rewards, memory, held-out images."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Evaluation:
    """Held-out images with their prompts and named rewards, each (n,).

    images: all of them in a run of one process; of several, the first few in the first process, for
        showing, and none in others.
    measures: what else is known of the policy by these images, such as "kl_forward", by name.
    """

    images: Tensor
    prompts: list[str]
    rewards: dict[str, Tensor]
    measures: dict[str, float] = field(default_factory=dict)


def reward_statistics(reward: Tensor) -> dict[str, float]:
    """Mean, std and percentiles of an epoch's training rewards."""
    points = torch.quantile(reward.double(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    return {
        "reward/mean": float(reward.mean()),
        "reward/std": float(reward.std()),
        "reward/p10": float(points[0]),
        "reward/p50": float(points[1]),
        "reward/p90": float(points[2]),
    }


def peak_memory_mb(device: torch.device | str = "cpu") -> float:
    """Peak bytes allocated on a CUDA device, else the process's peak resident set; in MB (1e6)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
