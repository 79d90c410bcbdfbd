"""What `genpol bench decision` times: decisions of one robot, steered and not.

Networks have the sizes that `genpol clone` and `genpol value` give them, and untrained weights:
what a decision costs depends on shapes alone. Observations are 39 numbers, actions 4, in chunks of
4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator

from genpol.policies.policy import ChunkPolicy, Kind
from genpol.steering.select import softmax
from genpol.steering.session import Arms, latencies
from genpol.steering.steered import Steered
from offline.critics.value import ValueFunction
from offline.spec import ActionSpec
from offline.types import Obs

OBS, ACT, CHUNK = 39, 4, 4
STATES = 20


@dataclass(frozen=True)
class Timed:
    """Seconds of each decision, and the mean seconds of the parts of a steered one."""

    base: Sequence[float]
    steered: Sequence[float]
    parts: dict[str, float]

    def metrics(self, policy: str) -> dict[str, float]:
        """See docs/metrics.md."""
        found = {}
        for name, seconds in (("base", self.base), ("steered", self.steered)):
            for q in (50, 95):
                found[f"bench/{policy}_{name}_p{q}_ms"] = 1e3 * float(np.percentile(seconds, q))
        return found | {f"bench/{policy}_{part}_ms": 1e3 * s for part, s in self.parts.items()}


def make_arms(policy: Kind, candidates: int, device: str, seed: int) -> Arms:
    """A policy and a critic on a device, and how the critic chooses."""
    spec = ActionSpec.from_bounds([-1.0] * ACT, [1.0] * ACT, chunk=CHUNK)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = ChunkPolicy(policy, spec, {"state": (OBS,)})
        value = ValueFunction(spec, {"state": (OBS,)})
    base, value = (part.to(device).eval().requires_grad_(False) for part in (base, value))
    return Arms(base, value, softmax(1.0), num_candidates=candidates)


def observations(seed: int) -> list[Obs]:
    """States as a robot sends them, on the CPU."""
    draw = Generator().manual_seed(seed)
    return [{"state": torch.randn(1, OBS, generator=draw)} for _ in range(STATES)]


def time_decisions(arms: Arms, decisions: int, seed: int) -> Timed:
    """Base and steered in turn, from the observation on the CPU to the action there.

    Args:
        arms: of `make_arms`.
        decisions: of each, rounded up to a multiple of `STATES`.
        seed: of the states.
    """
    states = observations(seed)
    seconds = latencies(arms, states, repeats=-(-decisions // STATES))
    steered, draw = arms.make("steered"), Generator().manual_seed(seed)
    assert isinstance(steered, Steered)
    steered.decide(states[0], draw)  # which says where it computes
    steered.latency.clear()
    for state in states:
        steered.decide(state, draw)
    return Timed(seconds["base"], seconds["steered"], steered.latency.mean_parts())
