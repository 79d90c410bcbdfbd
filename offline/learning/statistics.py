"""Statistics of observations that follow the replay, where nothing else tells them.

Without data, networks begin with the mean and std of what random actions show. What a policy that
has learnt something sees may lie far outside. So they are computed anew of what the replay holds at
2,000 environment steps, at 4,000, 8,000 and so on, and for the last time at 128,000, when they
hardly move any more. What was learnt stays: see `offline.networks.normalizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from offline.data.replay import Replay
from offline.data.replay_storage import OBS
from offline.learning.agent import Agent, Restandardises
from offline.networks.normalizer import ObsStats, low_dim_keys

FIRST, LAST = 2_000, 128_000  # environment steps
ROWS_AT_ONCE = 16_384


class FollowingStatistics:
    """When statistics are due, and what they are.

    Args:
        agent: takes them on; one that cannot keeps what it has.
        replay: whose observations count.
    """

    def __init__(self, agent: Agent, replay: Replay) -> None:
        self.agent, self.replay = agent, replay
        self.due: int | None = FIRST
        """The environment step from which on they are due; None is never again."""

    def advance(self, step: int) -> bool:
        """Take on new statistics if they are due; whether they were.

        Args:
            step: environment steps so far.
        """
        if self.due is None or step < self.due:
            return False
        if isinstance(self.agent, Restandardises):
            self.agent.restandardise(replay_stats(self.replay))
        self.due = 2 * self.due if self.due < LAST else None
        return True

    def state_dict(self) -> dict[str, Any]:
        """When they are due; the statistics are the agent's."""
        return {"due": self.due}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned."""
        self.due = state["due"]


def replay_stats(replay: Replay) -> ObsStats:
    """Mean and std of every one-dimensional observation that a step of the replay began in."""
    held = replay.held
    rows = (held["outcome"] > 0).nonzero()[:, 0].split(ROWS_AT_ONCE)
    stats = {}
    for key in low_dim_keys(replay.obs_shapes):
        parts = [held[OBS + key][some] for some in rows]
        count = sum(map(len, parts))
        mean = _total(parts) / count
        variance = _total([(part.double() - mean).square() for part in parts]) / count
        stats[key] = (mean.numpy(), variance.sqrt().numpy())
    return stats


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.sum(0, dtype=torch.float64) for part in parts]).sum(0)
