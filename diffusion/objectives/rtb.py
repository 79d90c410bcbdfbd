"""RTB: relative trajectory balance (arXiv 2405.20971), with the partition function of a group.

For a chain with aggregated log-ratio r = sum_t w_t (log p_t - log p_ref,t) and its prompt's Z,

    loss = mean over chains of (r + log Z - R / beta)^2

log Z is estimated by the group's own mean (VarGrad): log Z = mean over the group of (R / beta - r).
The loss is then the variance within the group of u = r - R / beta, and

    variance = 1/2 mean over all ordered pairs (a, b), a = b and ties included, of (u_a - u_b)^2

so with equal groups RTB is half of PRDP's unclipped squared difference, over all pairs.

Units: those of PRDP; beta per dimension, and beta_per_dim = T D beta_nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import InputError
from diffusion.objective import Rollouts, aggregated, tie_fraction


@dataclass(frozen=True)
class RTB:
    """The RTB loss. beta: reward scale; smaller follows the reward harder. unit: as of PRDP."""

    beta: float = 3e-5
    unit: str = "per_dim"
    held_by = "beta"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise InputError(f"beta must be positive, got {self.beta}")
        if self.unit not in ("per_dim", "nats"):
            raise InputError(f"unit must be per_dim or nats, got {self.unit!r}")

    def __call__(self, log_prob: Tensor, rollouts: Rollouts) -> tuple[Tensor, dict[str, float]]:
        """Loss (scalar, float64) and metrics for `log_prob` (M, T)."""
        weight = rollouts.step_weight.to(log_prob.device).double()
        beta = self.beta * (rollouts.scored * rollouts.dimensions if self.unit == "nats" else 1)
        ratio = aggregated(log_prob.double() - rollouts.log_prob_ref.double(), weight)
        gap = ratio - rollouts.reward.double() / beta  # u: minus log Z where the optimum is reached
        ids, at = rollouts.group.unique(return_inverse=True)
        at = at.to(gap.device)
        count = torch.bincount(at, minlength=len(ids)).to(gap)
        log_z = -torch.zeros_like(count).index_add(0, at, gap) / count
        loss = (gap + log_z[at]).square().mean()
        return loss, {
            "rtb/loss": float(loss.detach()),
            "rtb/log_z": float(log_z.detach().mean()),
            "rtb/tie_fraction": tie_fraction(rollouts.reward, rollouts.group),
        }
