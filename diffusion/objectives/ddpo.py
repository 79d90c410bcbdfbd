"""DDPO: denoising diffusion policy optimisation (arXiv 2305.13301), the importance-sampled form.

Per step, with rho_t = exp(log p_t - log p_old,t) and an advantage A of each image,

    loss = mean over images and steps of max(-A rho_t, -A clip(rho_t, 1 - eps, 1 + eps))

A = (R - mean) / std, of the last rewards of the *same prompt* where enough of them are known, else
of the epoch's, held to +-5. The tracker is why DDPO needs prompts that come back: of prompts that
are seen once it only ever has the epoch's mean.

Units. Log-probs are means over the D dimensions, as published, so eps = 1e-4 is per dimension:
the joint density's ratio may move by D eps nats.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from diffusion.errors import InputError
from diffusion.objective import Rollouts
from diffusion.objectives.ppo import EPSILON, clipped_loss

ADVANTAGE_LIMIT = 5.0


@dataclass
class PromptTracker:
    """The last rewards of every prompt (DDPO, section 5 and its code).

    size: rewards kept of each prompt. least: how many must be known before a prompt's own
    statistics are used.
    """

    size: int = 32
    least: int = 16
    seen: dict[str, deque[float]] = field(default_factory=dict)

    def update(self, prompts: list[str], reward: Tensor) -> Tensor:
        """Remember an epoch's rewards (M,) and return its advantages (M,) float64."""
        reward = reward.double()
        for prompt, value in zip(prompts, reward.tolist(), strict=True):
            self.seen.setdefault(prompt, deque(maxlen=self.size)).append(value)
        mean, std = reward.mean(), reward.std(correction=0)
        out = torch.empty_like(reward)
        for i, prompt in enumerate(prompts):
            known = self.seen[prompt]
            if len(known) < self.least:
                out[i] = (reward[i] - mean) / (std + EPSILON)
            else:
                own = torch.tensor(list(known), dtype=torch.float64)
                out[i] = (reward[i] - own.mean()) / (own.std(correction=0) + EPSILON)
        return out.clamp(-ADVANTAGE_LIMIT, ADVANTAGE_LIMIT)


@dataclass
class DDPO:
    """The DDPO loss. clip: eps, None for no clipping; tracker: of prompts' rewards."""

    clip: float | None = 1e-4
    tracker: PromptTracker = field(default_factory=PromptTracker)

    def __post_init__(self) -> None:
        if self.clip is not None and not 0 < self.clip < 1:
            raise InputError(f"clip must be in (0, 1), got {self.clip}; use --no-clipping for none")

    def prepare(self, rollouts: Rollouts, prompts: list[str]) -> Rollouts:
        """Once an epoch: rewards (M,) become advantages by way of the tracker."""
        return replace(rollouts, advantage=self.tracker.update(prompts, rollouts.reward))

    def __call__(self, log_prob: Tensor, rollouts: Rollouts) -> tuple[Tensor, dict[str, float]]:
        """Loss (scalar, float64) and metrics for `log_prob` (M, T)."""
        assert rollouts.advantage is not None, "prepare() comes first"
        log_ratio = log_prob.double() - rollouts.log_prob_old.double()
        weight = rollouts.step_weight.to(log_prob.device).double()
        loss, metrics = clipped_loss(log_ratio, rollouts.advantage, self.clip, weight)
        return loss, {"ddpo/loss": float(loss.detach())} | {
            f"ddpo/{name}": value for name, value in metrics.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON can hold it."""
        return {"seen": {prompt: list(values) for prompt, values in self.tracker.seen.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.tracker.seen = {
            prompt: deque(values, maxlen=self.tracker.size)
            for prompt, values in state["seen"].items()
        }
