"""Settings of agents that fine-tune a policy's own weights by reward; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from offline.ranges import Count, NotNegative, Positive, Size

# The objectives of `diffusion/objectives` that do not learn from files of pairs.
TRAJECTORY = ("prdp", "ddpo", "grpo", "rtb")  # they score denoising steps
FORWARD = ("prdp-forward", "nft", "awm")  # they need finished chunks alone
TUNERS = (*TRAJECTORY, *FORWARD)
TEMPERED = ("prdp", "rtb", "prdp-forward")  # whose optimum is a temperature's


@dataclass(frozen=True)
class TuningConfig:
    """How a policy is fine-tuned by reward. Where `FinetuneConfig` has the same setting, it has the
    same name there, but the unit is nats of a chunk's joint density here."""

    beta: Positive = 0.3
    """Reward temperature of prdp, rtb and prdp-forward, in units of the reward for each nat of the
    KL from the policy as it was, above 0. It is what --temperature is to `genpol steer`: a smaller
    one follows the value harder."""
    kl_cap: Positive = 2.5
    """Largest KL from the policy as it was that the rewards of one observation may ask for (prdp,
    rtb, prdp-forward, with --value), in nats, above 0. Rewards that differ by more are scaled down
    there. The best of 32 candidates is 2.5 nats away; a large cap such as 1000 leaves --beta
    alone."""
    clip: Positive = 0.5
    """How far a log-ratio may move from where it was when chunks were drawn, in nats of a whole
    chunk, above 0 (all but rtb and nft). It acts from the second of --inner-steps on."""
    group_size: Annotated[int, Ge(2), Le(65_536)] = 8
    """Chunks that are drawn for each observation, or episodes for each layout, and compared, at
    least 2."""
    groups: Size = 8
    """Layouts of each round of episodes, where the reward comes from episodes (G), at least 1. A
    round is --groups times --group-size episodes."""
    layouts: Count | None = None
    """Initial states that episodes begin from, round after round in turn, at least --groups.
    Default: new ones in every round."""
    inner_steps: Size = 1
    """Optimiser steps on what is drawn at a time, at least 1."""
    sampler: Literal["flow-sde", "dance-sde", "cps", "ode"] = "cps"
    """How a flow policy draws the chunks that it is trained on. It is deployed by its ODE, which is
    ode here. ode draws no noise, so it is for prdp-forward, nft and awm alone."""
    noise_level: NotNegative = 0.5
    """Noise level of --sampler, at least 0, and at most 1 for cps."""
    step_weights: Literal["uniform", "skip_last", "balanced"] = "uniform"
    """Weight of each denoising step in the log-ratio: the same, with which --beta is exact
    (uniform), none for the last step (skip_last), or inverse to how much the network's output moves
    the step (balanced)."""
    kl_weight: NotNegative | None = None
    """Weight of the KL from the policy as it was in grpo, of the squared distance to its output in
    nft, and of that to the average of the weights in awm, at least 0. At 0 the critic is followed
    without end. Default: 1."""
    draws: Size = 4
    """Times and noises for each chunk in prdp-forward, nft and awm, at least 1."""
    loss_weight: Literal["simple", "elbo"] = "elbo"
    """Weight of times in prdp-forward and awm: that of the evidence lower bound, with which nats
    are nats (elbo), or that of the cloning loss (simple)."""
    mix: Annotated[float, Gt(0), Le(1)] = 0.1
    """Share of the new weights' output in the two outputs that nft compares, above 0, at most 1."""


# What these agents take that differs from the general defaults.
# A batch is of observations; episodes are rewarded by success.
COMMON: dict[str, Any] = {
    "batch_size": 32,
    "base_lr": 1e-4,
    "base_ema": 0.99,
    "reward": "zero-one",
}


def usual_tuning(agent: str) -> dict[str, Any]:
    """The options of one of `TUNERS` that differ from the general defaults."""
    return COMMON | ({"sampler": "ode"} if agent in FORWARD else {})
