"""DiffusionNFT: negative-aware fine-tuning on the forward process (arXiv 2509.16117).

With v_old the output under an average of the weights, and b in (0, 1],

    v+ = (1 - b) v_old + b v_theta        v- = (1 + b) v_old - b v_theta
    loss = mean of (r |x0(v+) - x0|^2 / m+  +  (1 - r) |x0(v-) - x0|^2 / m-) / b
    r    = 1/2 + 1/2 clip(A / 5, -1, 1)

A is the advantage within the group. Errors are those of the clean sample, each divided by its own
mean absolute value m (no gradient through m), as the released code has it. The images are drawn
under the average, whose decay grows from 0 (`decay`), so the first steps are on-policy.

The average is what holds the policy. Where kl > 0, the released code's other term is added,

    kl |v_theta - v_ref|^2        a mean over dimensions of the network's outputs

Units: r has none; b mixes outputs; kl is per dimension of the output. Published: 1e-4, beside a
loss that is 5 times this one, so 2e-5 here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.errors import InputError
from diffusion.forward import Denoised
from diffusion.objective import Rollouts, averaged, tie_fraction
from diffusion.objectives.ppo import group_advantage

ADVANTAGE_LIMIT = 5.0


@dataclass(frozen=True)
class NFT:
    """The DiffusionNFT loss. mix: b. kl: weight of the distance to the reference, 0 for none."""

    mix: float = 0.1
    draws: int = 4
    decay_rate: float = 0.005
    decay_limit: float = 0.5
    kl: float = 0.0
    anchor = True
    drawn_by_anchor = True
    linear = True  # in the table: its gradient needs no first pass
    held_by = "kl"

    def __post_init__(self) -> None:
        if not 0 < self.mix <= 1:
            raise InputError(f"the mix b must be above 0 and at most 1, got {self.mix}")
        if self.kl < 0:
            raise InputError(f"the weight of the KL must be at least 0, got {self.kl}")

    @property
    def terms_per_draw(self) -> int:
        """Three numbers with the distance to the reference, else two."""
        return 3 if self.kl else 2

    @property
    def needs_reference(self) -> bool:
        """Whether `terms` needs outputs under the reference."""
        return self.kl > 0

    def decay(self, updates: int) -> float:
        """Of the average of the weights, after `updates` optimiser steps."""
        return min(self.decay_rate * updates, self.decay_limit)

    def prepare(self, rollouts: Rollouts, prompts: list[str]) -> Rollouts:
        """Once an epoch: rewards (M,) become r in [0, 1]."""
        advantage = group_advantage(rollouts.reward, rollouts.group)
        return replace(rollouts, advantage=0.5 + 0.5 * (advantage / ADVANTAGE_LIMIT).clamp(-1, 1))

    def terms(self, denoised: Denoised) -> Tensor:
        """(M, 2) the errors of v+ and of v-, each over its own mean absolute value and over b; with
        kl (M, 3), the squared distance to the reference's output too."""
        assert denoised.output_anchor is not None
        old, new, b = denoised.output_anchor.float(), denoised.output.float(), self.mix
        terms = [
            self._error(denoised, (1 - b) * old + b * new),
            self._error(denoised, (1 + b) * old - b * new),
        ]
        if self.kl:
            assert denoised.output_reference is not None
            apart = (new - denoised.output_reference.float()).square()
            terms.append(apart.flatten(1).mean(1))
        return torch.stack(terms, 1)

    def _error(self, denoised: Denoised, output: Tensor) -> Tensor:
        gap = denoised.process.x0(output, denoised.x_t, denoised.at) - denoised.x0
        size = gap.detach().abs().flatten(1).mean(1).clamp_min(1e-5)
        return gap.square().flatten(1).mean(1) / (size * self.mix)

    def __call__(self, table: Tensor, rollouts: Rollouts) -> tuple[Tensor, dict[str, float]]:
        """Loss (scalar, float64) and metrics for a table (M, S, C) of `terms`."""
        assert rollouts.advantage is not None, "prepare() comes first"
        r = rollouts.advantage.to(table.device).double()[:, None]
        weight = rollouts.step_weight.to(table.device).double()
        plus, minus = table[..., :2].double().unbind(-1)
        loss = averaged(r * plus + (1 - r) * minus, weight)
        more = {}
        if self.kl:
            apart = averaged(table[..., 2].double(), weight)
            loss = loss + self.kl * apart
            more["nft/distance"] = float(apart.detach())
        return loss, more | {
            "nft/loss": float(loss.detach()),
            "nft/positive_loss": float(averaged(r * plus, weight).detach()),
            "nft/negative_loss": float(averaged((1 - r) * minus, weight).detach()),
            "nft/tie_fraction": tie_fraction(rollouts.reward, rollouts.group),
        }
