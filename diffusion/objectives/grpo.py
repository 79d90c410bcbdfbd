"""GRPO on denoising chains: PPO with advantages of the group (Flow-GRPO, arXiv 2505.05470).

    loss = mean over images and steps of max(-A rho_t, -A clip(rho_t, 1 - eps, 1 + eps))
           + beta_kl (mean_theta,t - mean_ref,t)^2 / (2 std_t^2)

A = (R - mean of the group) / (std of the group), the group being the images of one prompt.

`normalise_ratio` takes from each step's log-ratios their mean over the epoch's images and scales
them to the mean step's spread (the mend of GRPO-Guard, arXiv 2510.22319): on flow samplers the
log-ratio is biased below 0, by half its own variance, and its spread differs from step to step, so
that one clip is too tight for some steps and none for others.

Units. Log-probs and the KL are means over the D dimensions: eps is per dimension, and beta_kl
weighs a KL per dimension; the joint KL's weight is beta_kl / D.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.errors import InputError
from diffusion.objective import Rollouts, tie_fraction
from diffusion.objectives.ppo import clipped_loss, group_advantage

TINY = 1e-12


@dataclass
class GRPO:
    """The GRPO loss. clip: eps, None for no clipping; kl: beta_kl, 0 for no KL term."""

    clip: float | None = 1e-4
    kl: float = 0.0
    normalise_ratio: bool = False
    held_by = "kl"

    def __post_init__(self) -> None:
        if self.clip is not None and not 0 < self.clip < 1:
            raise InputError(f"clip must be in (0, 1), got {self.clip}; use --no-clipping for none")
        if self.kl < 0:
            raise InputError(f"the weight of the KL must be at least 0, got {self.kl}")

    @property
    def channels(self) -> tuple[str, ...]:
        """Numbers that it needs of every step."""
        return ("log_prob", "kl") if self.kl else ("log_prob",)

    def prepare(self, rollouts: Rollouts, prompts: list[str]) -> Rollouts:
        """Once an epoch: rewards (M,) become advantages within their group."""
        return replace(rollouts, advantage=group_advantage(rollouts.reward, rollouts.group))

    def __call__(self, table: Tensor, rollouts: Rollouts) -> tuple[Tensor, dict[str, float]]:
        """Loss (scalar, float64) and metrics for log-probs (M, T), or with their KL (M, T, 2)."""
        assert rollouts.advantage is not None, "prepare() comes first"
        log_prob = table[..., 0] if self.kl else table
        log_ratio = log_prob.double() - rollouts.log_prob_old.double()
        weight = rollouts.step_weight.to(table.device).double()
        if self.normalise_ratio:
            log_ratio = normalised(log_ratio, weight)
        loss, metrics = clipped_loss(log_ratio, rollouts.advantage, self.clip, weight)
        report = {"grpo/loss": float(loss.detach())} | {
            f"grpo/{name}": value for name, value in metrics.items()
        }
        if self.kl:
            divergence = (table[..., 1].double() * weight).sum(1).mean()
            loss = loss + self.kl * divergence
            report["grpo/kl"] = float(divergence.detach())
        report["grpo/tie_fraction"] = tie_fraction(rollouts.reward, rollouts.group)
        return loss, report


def normalised(log_ratio: Tensor, weight: Tensor) -> Tensor:
    """Log-ratios (M, T) without their mean over images, and with one spread for all steps.

    Right after a rollout all are 0 and stay so, and their gradients are left as they are. With a
    weight (M, T) the rows that have ended before a step have no part in its mean and spread.
    """
    with torch.no_grad():
        if weight.ndim == 1:
            centre = log_ratio.mean(0)
            spread = (log_ratio - centre).square().mean(0).sqrt()
        else:
            going = (weight > 0).to(log_ratio)
            share = going / going.sum(0).clamp_min(1)
            centre = (log_ratio * share).sum(0)
            spread = ((log_ratio - centre).square() * share).sum(0).sqrt()
        used = (weight > 0).reshape(-1, weight.shape[-1]).any(0)
        common = spread[used].mean()
        scale = torch.where(spread > TINY, common / spread.clamp_min(TINY), torch.ones_like(spread))
    return (log_ratio - centre) * scale
