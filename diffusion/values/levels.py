"""How noisy a latent is, as one number that no sampler and no number of steps changes.

With x_t = a x_0 + s eps, the level is s / (a + s): 0 is a finished latent and 1 is pure noise. In
flow models, where a = 1 - t and s = t, it is t itself. Elsewhere it is the logistic function of
minus half the log of the signal-to-noise ratio a^2 / s^2.

Shapes: T denoising steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.process import ReverseProcess


def levels(process: ReverseProcess) -> Tensor:
    """(T + 1,) float32 on the CPU: the level of x before each step, noisiest first, and 0 of the
    finished latent."""
    a, s = process.sqrt_alpha, process.sqrt_noise
    return torch.cat([s / (a + s), torch.zeros(1, dtype=s.dtype)]).float()
