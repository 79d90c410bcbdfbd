"""Candidates around a policy's own proposal, for policies that always propose the same.

    a_k = a + u_k s,   u_k ~ Uniform[-1, 1]^A,   s = noise * standard deviation of the critic's data

A deterministic policy (ACT, an L1 or MSE head) answers K copies of one chunk, and a value has
nothing to choose from. So its one chunk is asked for once, and K - 1 candidates lie around it. A
candidate moves all actions of the chunk alike: independent moves of each action would cancel out
over the chunk, and shake the robot. A gripper is not moved.

Shape legend: B rows, K candidates, H action chunk, A action dimension.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from genpol.steering.action_units import Units
from genpol.steering.steered import Edits
from offline.draws import moved
from offline.errors import InputError
from offline.spec import ActionSpec


class Around:
    """Bounded random moves of proposals, as `genpol.steering.steered.Steered` takes edits.

    Args:
        policy: spec of the proposals.
        critic: spec whose data's standard deviations are the unit.
        noise: largest move, in standard deviations, above 0.
        n: moves of each proposal.

    Raises:
        InputError: the noise is not above 0, or n is not.
    """

    def __init__(self, policy: ActionSpec, critic: ActionSpec, noise: float, n: int) -> None:
        if not noise > 0 or n < 1:
            raise InputError(f"expected noise above 0 and moves to draw, received {noise:g}, {n}")
        self.n = n
        size = noise / Units(policy, critic).per_std(torch.device("cpu"))  # (A,)
        for spec in (policy, critic):
            if spec.gripper is not None:
                size = size.index_fill(0, torch.tensor(spec.gripper % spec.dim), 0)
        self.size = size.abs()

    def __call__(self, features: Any, act: Tensor, generator: Generator | None) -> Edits:
        """(B, K, H, A) -> (B, K n, H, A) and their log density (B, K n), which is that of u."""
        rows, count, _, dim = act.shape
        drawn = 2 * torch.rand(rows, count * self.n, 1, dim, generator=generator) - 1
        move = moved(drawn * self.size, act.device)
        near = act.repeat_interleave(self.n, dim=1) + move
        return Edits(near, torch.full(near.shape[:2], -dim * math.log(2)).to(near))


def candidates_of(
    policy: ActionSpec, critic: ActionSpec, count: int, noise: float
) -> tuple[int, Around | None]:
    """How many proposals are asked of a policy for K candidates, and what moves them.

    Args:
        policy, critic: their specs.
        count: K.
        noise: see `Around`; 0 asks for all K.
    """
    if not noise or count < 2:
        return count, None
    return 1, Around(policy, critic, noise, count - 1)
