"""What policy-gradient objectives share: advantages, and PPO's clipped loss.

Shapes: M chains, T steps (or noise draws).
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6  # keeps a group of equal rewards at advantage 0


def group_advantage(reward: Tensor, group: Tensor) -> Tensor:
    """(M,) float64: (R - mean of the group) / (std of the group), 0 where a group is tied.

    The std is that of the group itself (divided by its size), as in GRPO (arXiv 2402.03300).
    """
    reward = reward.double()
    ids, at = group.unique(return_inverse=True)
    count = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, at, torch.ones_like(reward))
    mean = torch.zeros_like(count).index_add_(0, at, reward) / count
    centred = reward - mean[at]
    std = (torch.zeros_like(count).index_add_(0, at, centred.square()) / count).sqrt()
    return centred / (std[at] + EPSILON)


def clipped_loss(
    log_ratio: Tensor, advantage: Tensor, clip: float | None, weight: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """PPO's loss (arXiv 1707.06347 eq. 7): mean over chains of sum_t w_t max(-A rho, -A rho_clip).

    Args:
        log_ratio: (M, T) log p - log p_old of each step; rho is its exponential.
        advantage: (M,).
        clip: rho is held to [1 - clip, 1 + clip]; None for no clip.
        weight: (T,), or (M, T) for rows of different lengths, non-negative; see `Rollouts`.

    Returns:
        The scalar loss, and the share of steps whose ratio lies outside the clip.
    """
    ratio = log_ratio.exp()
    gain = advantage[:, None].to(ratio)
    plain = -gain * ratio
    used = (weight > 0).expand_as(ratio)
    if clip is None:
        return (plain * weight).sum(1).mean(), {"clip_fraction": 0.0}
    held = -gain * ratio.clamp(1 - clip, 1 + clip)
    outside = ((ratio - 1).abs() > clip)[used]
    loss = (torch.maximum(plain, held) * weight).sum(1).mean()
    return loss, {"clip_fraction": float(outside.double().mean()) if len(outside) else 0.0}
