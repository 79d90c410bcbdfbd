"""Replays of countable steps, and looking at all that they hold."""

from __future__ import annotations

import numpy as np
import torch
from toy_data import spec

from offline.data.batch import Batch
from offline.data.replay import Replay

GAMMA = 0.5
SHAPES = {"state": (1,)}


def make(capacity, chunk=2, **rest):
    return Replay(capacity, chunk, spec(), rest.pop("shapes", SHAPES), GAMMA, **rest)


def play(replay, steps, *, lane=0, first=0, ends="", success=None, rewards=None):
    """An episode's steps, or its next ones. States count up from `first`, action = state / 1000,
    and the reward is the state too unless given; ends: "terminated", "truncated" or ""."""
    for t in range(steps):
        last = t == steps - 1
        state = float(first + t)
        replay.add(
            lane,
            {"state": np.array([state])},
            np.array([state / 1000], np.float32),
            state if rewards is None else rewards[t],
            {"state": np.array([state + 1])},
            last and ends == "terminated",
            last and ends == "truncated",
            success if last and ends else None,
        )


def everything(replay) -> Batch:
    """Each drawable transition once, by state."""
    batch = replay._take(replay._starts.members())
    order = batch.obs["state"][:, 0].argsort()
    return replay._take(replay._starts.members()[order])


def states(batch):
    return batch.obs["state"][:, 0].tolist()


def draw(replay, count=4000, seed=0):
    return replay.sample(count, torch.Generator().manual_seed(seed))


def same(a: Batch, b: Batch):
    for name in ("act", "reward", "discount", "mc_return", "success", "key"):
        left, right = getattr(a, name), getattr(b, name)
        assert torch.equal(left.nan_to_num(7), right.nan_to_num(7)), name
    for left, right in ((a.obs, b.obs), (a.next_obs, b.next_obs)):
        assert all(torch.equal(left[key], right[key]) for key in left)
