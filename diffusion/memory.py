"""Peak memory of this process, in MB."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory_mb(device: torch.device | str = "cpu") -> float:
    """Peak bytes allocated on a CUDA device, else the process's peak resident set; in MB (1e6)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
