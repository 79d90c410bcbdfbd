"""A `Loop` as numbers, and back: training goes on where it stopped, in the middle of episodes.

No simulator has to know how to save itself: a running episode is saved as its seed and its
actions, and played again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

if TYPE_CHECKING:
    from offline.loop import Loop


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


def loop_state(loop: Loop) -> dict[str, Any]:
    """Everything that a loop goes on from."""
    imagination = loop.imagination
    return {
        "agent": loop.agent.state_dict(),
        "replay": loop.replay.state_dict(),
        "imagination": None if imagination is None else imagination.state_dict(),
        "counts": [loop.step, loop.updates, loop.episodes, loop.successes],
        "learnt": loop.learnt,
        "started": loop._started if loop._running else 0,
        "due": [loop._due, loop._policy_due],
        "generators": [generator.get_state() for generator in _generators(loop)],
        "sums": {key: [total, count] for key, (total, count) in loop._sums.items()},
        "imagined": dict(loop._imagined),
        "ended": [list(entry) for entry in loop._ended],
        "obs": {key: torch.from_numpy(values.copy()) for key, values in loop._obs.items()},
        "running": [
            {
                "seed": running.seed,
                "actions": _stacked(running.actions),
                "queue": _stacked(running.queue),
                "returned": running.returned,
            }
            for running in loop._running
        ],
    }


def load_loop_state(loop: Loop, state: Mapping[str, Any]) -> list[int]:
    """Take on what `loop_state` returned; running episodes are played again.

    Returns:
        Environments whose episode came out differently; see `Loop.load_state_dict`.
    """
    loop.replay.load_state_dict(state["replay"])
    loop.step, loop.updates, loop.episodes, loop.successes = state["counts"]
    loop.learnt = state.get("learnt", 0)  # runs from before there was `learn` have none
    loop._started = state["started"]
    loop._due, loop._policy_due = state["due"]
    for generator, saved in zip(_generators(loop), state["generators"], strict=True):
        generator.set_state(saved)
    loop._sums = {key: (total, count) for key, (total, count) in state["sums"].items()}
    loop._imagined = dict(state.get("imagined", {}))
    loop._ended = [(entry[0], entry[1], entry[2]) for entry in state["ended"]]
    loop._running = [
        Running(
            saved["seed"],
            list(saved["actions"].numpy()),
            deque(saved["queue"].numpy()),
            saved["returned"],
        )
        for saved in state["running"]
    ]
    differing = []
    if loop._running:
        loop._obs = {key: values.numpy() for key, values in state["obs"].items()}
        differing = _replay_episodes(loop)
    # Last, as a policy that is asked again may draw random numbers of its own.
    loop.agent.load_state_dict(state["agent"])
    if loop.imagination is not None:
        loop.imagination.load_state_dict(state["imagination"])
    return differing


def _generators(loop: Loop) -> tuple[Generator, Generator, Generator]:
    return loop._act, loop._draw, loop._learn


def _replay_episodes(loop: Loop) -> list[int]:
    """Bring the environments to where their episodes stood."""
    count = loop.envs.num_envs
    longest = max(len(running.actions) for running in loop._running)
    idle = np.zeros((count, loop.agent.spec.dim), np.float32)
    starts = [longest - len(running.actions) for running in loop._running]
    seeds = [running.seed for running in loop._running]
    obs = loop._copied(loop.envs.reset(seed=seeds)[0])
    policy, chunk = loop.agent.acting(), loop.agent.spec.chunk
    policy.reset()
    over = np.zeros(count, bool)
    for t in range(longest):
        # The shorter an episode, the later it starts; until then its environment idles.
        mask = over | np.array([start == t and start > 0 for start in starts])
        if mask.any():
            obs = loop._copied(loop.envs.reset(seed=seeds, options={"reset_mask": mask})[0])
        raw = idle.copy()
        for i, running in enumerate(loop._running):
            if t >= starts[i]:
                raw[i] = running.actions[t - starts[i]]
        if count == 1 and t % chunk == 0 and loop.step - longest + t >= loop.config.start_steps:
            _recommit(loop, policy, obs, t, chunk)
        obs, _, terminated, truncated, info = loop.envs.step(raw)
        obs = loop._copied(obs)
        over = np.asarray(terminated) | np.asarray(truncated)
    differing = [i for i in range(count) if not _same(loop, obs, i)]
    if differing:
        mask = np.isin(np.arange(count), differing)
        for i in differing:
            loop.replay.cut(i)
        loop._obs = obs
        loop._restart(mask)
    return differing


def _recommit(loop: Loop, policy: Any, obs: dict[str, np.ndarray], t: int, chunk: int) -> None:
    """Tell a policy with a memory again what it decided at step t of its episode."""
    running = loop._running[0]
    rest = list(running.actions[t : t + chunk])
    if len(rest) < chunk:
        rest += list(running.queue)
    act = loop.agent.spec.normalize(torch.from_numpy(np.stack(rest)))
    scratch = Generator().manual_seed(0)
    policy.sample({key: torch.from_numpy(values) for key, values in obs.items()}, 1, scratch)
    policy.commit(act[None])


def _same(loop: Loop, obs: dict[str, np.ndarray], i: int) -> bool:
    return all(np.array_equal(values[i], loop._obs[key][i]) for key, values in obs.items())


def _stacked(actions: Any) -> Tensor:
    """(T, A), also of none."""
    rows = list(actions)
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, 0)
