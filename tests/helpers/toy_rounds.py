"""An environment of one or two decisions, and small policies and rounds of it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

from genpol.policies.architecture import Architecture
from genpol.policies.chains import PolicyChains
from genpol.policies.policy import ChunkPolicy
from genpol.rounds.play import Played, Start, play
from offline.spec import ActionSpec
from robots.envs.vector_env import make_vector_env

LIMIT = 2
SPEC = ActionSpec.from_bounds([-1.0], [1.0])
SHAPES = {"state": (2,)}


class ToyAim(gymnasium.Env):
    """Hit a target in [-1, 1] that the layout says, with one of two shots; state (target, shots).

    A shot within .3 of the target succeeds and ends the episode. The reward is minus the distance.
    """

    observation_space = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    steps_made = 0  # by all of them

    def __init__(self) -> None:
        self.target, self.shots = 0.0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.target, self.shots = self.np_random.uniform(-0.8, 0.8), 0
        return np.array([self.target, 0.0]), {"success": False}

    def step(self, action):
        ToyAim.steps_made += 1
        self.shots += 1
        apart = abs(float(action[0]) - self.target)
        state = np.array([self.target, float(self.shots)])
        return state, -apart, False, False, {"success": apart < 0.3}


NAME = "ToyAim-v0"
gymnasium.register(NAME, ToyAim, max_episode_steps=LIMIT)


def envs(count: int) -> Any:
    return make_vector_env(NAME, count)


def policy(kind: str = "flow", *, seed: int = 0, **sizes: Any) -> ChunkPolicy:
    architecture = Architecture(
        **{"features": 16, "encoder_layers": 1, "width": 16, "denoising_steps": 3} | sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = ChunkPolicy(kind, SPEC, SHAPES, env=NAME, architecture=architecture)
        for weight in made.parameters():  # a plain trunk would not look at the observation
            weight.data += 0.2 * torch.randn_like(weight)
    return made


def chains(kind: str = "flow", **options: Any) -> PolicyChains:
    made = policy(kind)
    noise = {"sampler": "cps", "noise_level": 0.5} if kind == "flow" else {}
    return PolicyChains(made, **noise | options)


def starts(groups: int, size: int, round_: int = 0) -> list[Start]:
    return [
        Start(round_ * groups + m // size, torch.Generator().manual_seed(1000 * round_ + m))
        for m in range(groups * size)
    ]


def played(kind: str = "flow", groups: int = 2, size: int = 3, lanes: int = 3, **options) -> Played:
    made = envs(lanes)
    found = play(made, chains(kind), starts(groups, size), **options)
    made.close()
    assert found is not None
    return found


RUN: dict[str, Any] = {
    "env": NAME,
    "action_chunk": 1,
    "steps": 40,
    "groups": 2,
    "group_size": 4,
    "num_envs": 3,
    "inner_steps": 2,
    "base_lr": 1e-3,
    "reward": "dataset",
    "eval_every": 30,
    "eval_episodes": 2,
    "checkpoint_every": 20,
    "device": "cpu",
    "wandb": "disabled",
}


def train(**options: Any) -> int:
    """`genpol train` with RUN's options where not given; the exit code."""
    from training_runs import words

    from genpol.cli import main

    return main(["train", *words(**(RUN | options))])
