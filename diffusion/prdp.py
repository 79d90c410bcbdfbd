"""PRDP: proximal reward difference prediction (arXiv 2402.08714).

For two chains a, b of one prompt with R(a) > R(b), and step log-ratios against the reference
r_t = log p(x_{t-1} | x_t) - log p_ref(x_{t-1} | x_t), aggregated over t to r:

    l      = (r(a) - r(b) - (R(a) - R(b)) / beta)^2
    l_clip = the same with every r_t clipped to [r_old,t - eps, r_old,t + eps]
    loss   = mean over pairs of max(l, l_clip)

It is zero for all pairs iff the policy is proportional to p_ref exp(R / beta_s), the optimum of
reward minus beta_s times the KL over trajectories, with beta_s the summed-form beta in nats.

Units. Published: step log-probs are means over the D dimensions and r is the *mean* over T steps
(supplement; the main text writes a sum). `unit="per_dim"` reads beta and eps that way. With
`unit="nats"` they speak of the joint density: eps bounds the log-ratio of one whole step, and beta
is that of the KL-regularised optimum. Since r_nats = T D r_per_dim,

    beta_per_dim = T D beta_nats          eps_per_dim = eps_nats / D

A row that is an episode of several chains has the sum of their r; T is then that of one chain, and
the formulas stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import InputError
from diffusion.objective import Rollouts, aggregated, group_members, tie_fraction


@dataclass(frozen=True)
class PRDP:
    """The PRDP loss.

    beta: reward scale; smaller follows the reward harder. clip: eps, None for no clipping.
    aggregate: "mean" as published, or "sum" (the main text): the same minimiser, with the loss in
    squared nats, T D squared times larger. unit: of beta and clip, see the module's docstring.
    """

    beta: float = 3e-5
    clip: float | None = 1e-4
    unit: str = "per_dim"
    aggregate: str = "mean"
    held_by = "beta"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise InputError(f"beta must be positive, got {self.beta}")
        if self.clip is not None and self.clip <= 0:
            raise InputError(f"clip must be positive, got {self.clip}; use --no-clipping for none")
        if self.unit not in ("per_dim", "nats"):
            raise InputError(f"unit must be per_dim or nats, got {self.unit!r}")
        if self.aggregate not in ("mean", "sum"):
            raise InputError(f"aggregate must be mean or sum, got {self.aggregate!r}")

    def per_dim(self, steps: int, dimensions: int) -> tuple[float, float | None]:
        """(beta, eps) in per-dimension units for chains of `steps` scored steps."""
        if self.unit == "per_dim":
            return self.beta, self.clip
        return self.beta * steps * dimensions, None if self.clip is None else self.clip / dimensions

    def __call__(self, log_prob: Tensor, rollouts: Rollouts) -> tuple[Tensor, dict[str, float]]:
        """Loss (scalar, float64) and metrics for `log_prob` (M, T) under the current weights.

        When every group is tied there is no pair: the loss is then 0 with zero gradient.
        """
        weight = rollouts.step_weight.to(log_prob.device).double()
        scored = rollouts.scored
        beta, eps = self.per_dim(scored, rollouts.dimensions)
        reward = rollouts.reward.double()
        reference = rollouts.log_prob_ref.double()
        ratio = log_prob.double() - reference  # (M, T)
        old = rollouts.log_prob_old.double() - reference
        clipped = ratio if eps is None else ratio.clamp(old - eps, old + eps)
        better = group_members(rollouts.group) & (reward[:, None] > reward[None, :])
        a, b = better.nonzero(as_tuple=True)
        target = (reward[a] - reward[b]) / beta
        r, r_clip = aggregated(ratio, weight), aggregated(clipped, weight)
        plain = (r[a] - r[b] - target).square()
        clip = (r_clip[a] - r_clip[b] - target).square()
        scale = (scored * rollouts.dimensions) ** 2 if self.aggregate == "sum" else 1.0
        pairs = max(len(a), 1)
        loss = scale * torch.maximum(plain, clip).sum() / pairs
        moved = (ratio - old).abs()[(weight > 0).expand_as(ratio)]
        return loss, {
            "prdp/loss": float(loss.detach()),
            "prdp/pairs": float(len(a)),
            "prdp/tie_fraction": tie_fraction(reward, rollouts.group),
            "prdp/clip_fraction": float((moved > eps).double().mean()) if eps else 0.0,
            "prdp/clipped_pairs": float((clip > plain).double().sum() / pairs),
        }
