"""Diffusion-DPO: learning from pairs of a chosen and a rejected image (arXiv 2311.12908).

With g = l_theta - l_ref at draws of (t, eps) that the pair shares,

    loss = mean over pairs and draws of -log sigmoid(-beta (g(chosen) - g(rejected)))

l is the denoising loss, a mean over dimensions (the paper's eq. 14 has beta T w(t), all in one
constant here). Implicit accuracy is the share of pairs whose chosen image has the smaller g; a tie
counts as half. Where the policy is still the reference, every pair ties.

Pairs come from a file (`preference_tuning.py`). Without one this is online DPO: of the images drawn
of a prompt, each two of which the reward prefers one are a pair.

Units: beta multiplies a loss per dimension; published values are 2,000 to 5,000 (SD1.5, SDXL).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from diffusion.errors import InputError
from diffusion.forward import Denoised
from diffusion.objective import Rollouts


@dataclass(frozen=True)
class DPO:
    """The Diffusion-DPO loss, on groups of two: the chosen has reward 1, the rejected 0."""

    beta: float = 2000.0
    draws: int = 1
    terms_per_draw = 1
    anchor = False
    linear = False

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise InputError(f"beta must be positive, got {self.beta}")

    def terms(self, denoised: Denoised) -> Tensor:
        """(M,) -l."""
        return -denoised.loss()

    def margins(self, table: Tensor, rollouts: Rollouts) -> Tensor:
        """(P, S) g(rejected) - g(chosen): above 0 where the policy prefers what people chose."""
        better = rollouts.reward[:, None] > rollouts.reward[None, :]
        pair = better & (rollouts.group[:, None] == rollouts.group[None, :])
        chosen, rejected = pair.nonzero(as_tuple=True)
        gain = table.double() - rollouts.log_prob_ref.double()  # -g
        return gain[chosen] - gain[rejected]

    def __call__(self, table: Tensor, rollouts: Rollouts) -> tuple[Tensor, dict[str, float]]:
        """Loss (scalar, float64) and metrics for a table (M, S) of `terms`."""
        margin = self.margins(table, rollouts)
        loss = -F.logsigmoid(self.beta * margin).mean() if margin.numel() else table.sum() * 0.0
        accurate = accuracy(margin)
        return loss, {
            "dpo/loss": float(loss.detach()),
            "dpo/accuracy": accurate,
            "dpo/margin": float(margin.detach().mean()) if margin.numel() else float("nan"),
        }


def accuracy(margin: Tensor) -> float:
    """Implicit accuracy: the share of pairs whose mean margin (P, S) is above 0, a tie being half;
    NaN without pairs."""
    return float(((margin.detach().mean(1).sign() + 1) / 2).mean())
