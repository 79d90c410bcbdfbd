"""AWM: advantage-weighted matching on the forward process (arXiv 2509.25050), with PPO's clip.

The denoising loss stands in for a log-likelihood, at draws of (t, eps) that a group shares:

    rho_s = exp(-(l_theta - l_old) / (2 w))       l_old: at the rollout
    loss  = mean over images and draws of max(-A rho, -A clip(rho, 1 - eps, 1 + eps))
            + kl |v_theta - v_avg|^2

Its gradient at the rollout is that of A l_theta / (2 w): good images are matched, bad ones are
un-matched, which has no lower bound. The clip and the pull towards an average of the weights are
what keeps it stable; without both it diverges.

Units: eps and kl per dimension, as l is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.errors import InputError
from diffusion.forward import Denoised
from diffusion.objective import Rollouts, averaged, tie_fraction
from diffusion.objectives.ppo import clipped_loss, group_advantage


@dataclass(frozen=True)
class AWM:
    """The AWM loss. clip: eps, None for none; kl: weight of the pull to the average."""

    clip: float | None = 1e-2
    kl: float = 1.0
    weight: str = "simple"
    draws: int = 4
    decay_limit: float = 0.9
    terms_per_draw = 2
    anchor = True
    linear = False
    held_by = "kl"

    def __post_init__(self) -> None:
        if self.clip is not None and not 0 < self.clip < 1:
            raise InputError(f"clip must be in (0, 1), got {self.clip}; use --no-clipping for none")
        if self.kl < 0:
            raise InputError(f"the weight of the KL must be at least 0, got {self.kl}")

    def decay(self, updates: int) -> float:
        """Of the average of the weights, after `updates` optimiser steps."""
        return min((1 + updates) / (10 + updates), self.decay_limit)

    def prepare(self, rollouts: Rollouts, prompts: list[str]) -> Rollouts:
        """Once an epoch: rewards (M,) become advantages within their group."""
        return replace(rollouts, advantage=group_advantage(rollouts.reward, rollouts.group))

    def terms(self, denoised: Denoised) -> Tensor:
        """(M, 2): -l / (2 w), and the squared distance to the average's output."""
        assert denoised.output_anchor is not None
        half = denoised.half_weight(self.weight)
        apart = (denoised.output.float() - denoised.output_anchor.float()).square()
        return torch.stack([-denoised.loss() * half, apart.flatten(1).mean(1)], 1)

    def __call__(self, table: Tensor, rollouts: Rollouts) -> tuple[Tensor, dict[str, float]]:
        """Loss (scalar, float64) and metrics for a table (M, S, 2) of `terms`."""
        assert rollouts.advantage is not None, "prepare() comes first"
        log_ratio = table[..., 0].double() - rollouts.log_prob_old.double()
        weight = rollouts.step_weight.to(table.device).double()
        loss, metrics = clipped_loss(log_ratio, rollouts.advantage, self.clip, weight)
        apart = averaged(table[..., 1].double(), weight)
        loss = loss + self.kl * apart
        return loss, {
            "awm/loss": float(loss.detach()),
            "awm/distance": float(apart.detach()),
            "awm/tie_fraction": tie_fraction(rollouts.reward, rollouts.group),
        } | {f"awm/{name}": value for name, value in metrics.items()}
