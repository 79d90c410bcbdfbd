"""A tiny environment, and demonstrations of it.

Run as a script it is `genpol` in a process of its own, which knows the environment.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from offline.data.episodes import Episode
from offline.spec import ActionSpec

NAME = "ToyReach-v0"
LIMIT = 12


class ToyReach(gymnasium.Env):
    """Walk from (x, y) to (g, 0), a quarter of an action a step; state (x, y, g)."""

    observation_space = gymnasium.spaces.Box(-2.0, 2.0, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self) -> None:
        self.state = np.zeros(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 3)
        return self.state.copy(), {"success": False}

    def step(self, action):
        self.state[:2] = np.clip(self.state[:2] + 0.25 * np.asarray(action), -2, 2)
        apart = self.state[:2] - (self.state[2], 0)
        success = bool(np.abs(apart).max() < 0.4)
        return self.state.copy(), -float(np.abs(apart).sum()), False, False, {"success": success}


class ToyChoice(ToyReach):
    """With actions that are no vector."""

    action_space = gymnasium.spaces.Discrete(4)


gymnasium.register(NAME, ToyReach, max_episode_steps=LIMIT)
gymnasium.register("ToyOther-v0", ToyReach, max_episode_steps=LIMIT)
gymnasium.register("ToyChoice-v0", ToyChoice, max_episode_steps=LIMIT)

SPEC = ActionSpec.from_bounds([-1.0, -1.0], [1.0, 1.0])


def demonstration(seed: int) -> Episode:
    """A hesitant walk; half of them end within the limit."""
    env, rng = ToyReach(), np.random.default_rng(seed)
    states, actions, rewards = [env.reset(seed=seed)[0]], [], []
    success, pace = False, rng.uniform(0.2, 0.9)
    while len(actions) < LIMIT and not success:
        x, y, g = states[-1]
        action = np.clip(pace * np.sign([g - x, -y]) + rng.normal(0, 0.1, 2), -1, 1)
        state, reward, _, _, info = env.step(action.astype(np.float32))
        states.append(state)
        actions.append(action)
        rewards.append(reward)
        success = info["success"]
    return Episode(
        obs={"state": np.stack(states).astype(np.float32)},
        actions=np.stack(actions).astype(np.float32),
        rewards=np.array(rewards, np.float32),
        terminated=False,
        success=success,
    )


def write_demonstrations(path: Path, episodes: list[Episode] | None = None, **about: Any) -> Path:
    from robots.datasets.robomimic_hdf5 import write_hdf5

    episodes = [demonstration(seed) for seed in range(20)] if episodes is None else episodes
    about = {"spec": SPEC, "env": NAME, "env_kwargs": {}, "seed": 0} | about
    write_hdf5(path, episodes, **about)
    return path


if __name__ == "__main__":
    from genpol.cli import main

    sys.exit(main())
