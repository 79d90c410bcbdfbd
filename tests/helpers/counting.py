"""An environment of counting, an agent that counts, and the loop that joins them."""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from offline.data.mixture import Mixture, Share
from offline.data.replay import Replay
from offline.learning.config import RLConfig
from offline.learning.loop import Loop
from offline.spec import ActionSpec

SPEC = ActionSpec.from_bounds([-2.0], [2.0], chunk=2)
CONFIG = RLConfig(
    action_chunk=2,
    batch_size=8,
    update_after=4,
    replay_capacity=200,
    discount=0.9,
    log_every=10,
    start_steps=0,
)


class Count(gymnasium.Env):
    """State (seed's remainder, steps, sum of actions); `ending` says how it ends after 5 steps."""

    observation_space = gymnasium.spaces.Dict(
        {"state": gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)}
    )
    action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self, ending="success", random=False, length=5):
        self.ending, self.random, self.length = ending, random, length
        self.seeds = []

    def _obs(self):
        return {"state": np.array([self.start, self.steps, self.sum], np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.start, self.steps, self.sum = seed % 7, 0, 0.0
        return self._obs(), {"success": False}

    def step(self, action):
        self.steps += 1
        self.sum += float(action[0])
        if self.random:
            self.sum += np.random.rand()
        over = self.steps == self.length
        ended, cut = over and self.ending == "terminated", over and self.ending == "truncated"
        success = over and self.ending == "success"
        return self._obs(), 0.5, ended, cut, {"success": success}


class Learner:
    """Acts at random; its weight is a running sum of what it is shown."""

    spec = SPEC

    def __init__(self):
        self.weight = torch.zeros(1)
        self.calls = []
        self.bad = False

    def update_critic(self, batch, generator):
        self.calls.append("critic")
        self.weight = self.weight + batch.reward.sum() + torch.rand(1, generator=generator)
        return {"critic/td_loss": torch.tensor(float("nan")) if self.bad else self.weight[0]}

    def update_policy(self, batch, generator):
        self.calls.append("policy")
        return {"actor/loss": torch.tensor(1.0)}

    def acting(self):
        return self

    evaluating = acting

    def sample(self, obs, n, generator):
        rows = len(obs["state"])
        return 2 * torch.rand((rows, n, 2, 1), generator=generator) - 1

    def commit(self, act): ...

    def reset(self): ...

    def keep(self, rows): ...

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight = state["weight"]


def loop(count=1, config=CONFIG, agent=None, imagination=None, **env):
    envs = SyncVectorEnv([lambda: Count(**env)] * count, autoreset_mode=AutoresetMode.DISABLED)
    config = dataclasses.replace(config, num_envs=count)
    replay = Replay(200, 2, SPEC, {"state": (3,)}, config.discount, lanes=count)
    mixture = Mixture([Share("online", replay, 1.0)])
    return Loop(
        agent or Learner(),
        envs,
        mixture,
        replay,
        config,
        layouts=lambda i: 100 + i,
        imagination=imagination,
    )
