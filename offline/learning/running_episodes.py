"""Episodes that environments are in, and playing them again: a simulator is saved as its seed and
its actions, so that no simulator has to know how to save itself.

Shape legend: N environments, H action chunk, A action dimension.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator

from offline.spec import ActionSpec
from offline.types import Policy

Observed = dict[str, np.ndarray]  # per key (N, ...)


class VectorEnv(Protocol):
    """What of gymnasium's vector environments is used; they must not reset themselves."""

    num_envs: int

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]: ...

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]: ...


@dataclass
class Running:
    """The episode that one environment is in."""

    seed: int
    actions: list[np.ndarray] = field(default_factory=list)
    """Executed so far, in the environment's units."""
    queue: deque[np.ndarray] = field(default_factory=deque)
    """Rest of the chunk decided on, in the environment's units."""
    returned: float = 0.0
    """The environment's own rewards so far."""

    def copy(self) -> Running:
        """One that does not grow with this one."""
        return Running(self.seed, list(self.actions), deque(self.queue), self.returned)


def copied(obs: Any) -> Observed:
    """Observations that the environments will not write over."""
    return {key: np.array(values) for key, values in obs.items()}


def play_again(
    envs: VectorEnv,
    episodes: Sequence[Running],
    spec: ActionSpec,
    policy: Policy,
    *,
    decided_from: int,
) -> Observed:
    """Bring the environments to where their episodes stood.

    Args:
        envs: as many as `episodes`; they are reset.
        episodes: what each is to be in.
        spec: of the actions, with the chunk that is decided on at once.
        policy: told again what it decided, where there is one environment; only then may it
            remember its episode.
        decided_from: the step of that episode before which chance decided instead.

    Returns:
        What the environments show now.
    """
    count = len(episodes)
    longest = max(len(episode.actions) for episode in episodes)
    starts = [longest - len(episode.actions) for episode in episodes]
    seeds = [episode.seed for episode in episodes]
    obs = copied(envs.reset(seed=seeds)[0])
    policy.reset()
    over = np.zeros(count, bool)
    for t in range(longest):
        # The shorter an episode, the later it starts; until then its environment idles.
        mask = over | np.array([start == t and start > 0 for start in starts])
        if mask.any():
            obs = copied(envs.reset(seed=seeds, options={"reset_mask": mask})[0])
        raw = np.zeros((count, spec.dim), np.float32)
        for i, episode in enumerate(episodes):
            if t >= starts[i]:
                raw[i] = episode.actions[t - starts[i]]
        if count == 1 and t % spec.chunk == 0 and t >= decided_from:
            _decide_again(policy, spec, obs, episodes[0], t)
        obs, _, terminated, truncated, _ = envs.step(raw)
        obs = copied(obs)
        over = np.asarray(terminated) | np.asarray(truncated)
    return obs


def differing(reached: Observed, saved: Observed) -> list[int]:
    """The environments that show something else than was saved."""
    count = len(next(iter(saved.values())))
    return [
        i
        for i in range(count)
        if not all(np.array_equal(values[i], saved[key][i]) for key, values in reached.items())
    ]


def _decide_again(
    policy: Policy, spec: ActionSpec, obs: Observed, running: Running, t: int
) -> None:
    """Tell a policy with a memory again what it decided at step t of its episode."""
    rest = list(running.actions[t : t + spec.chunk])
    if len(rest) < spec.chunk:
        rest += list(running.queue)
    act = spec.normalize(torch.from_numpy(np.stack(rest)))
    scratch = Generator().manual_seed(0)
    policy.sample({key: torch.from_numpy(values) for key, values in obs.items()}, 1, scratch)
    policy.commit(act[None])
