"""Small datasets for the tests, with numbers that can be told apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from offline.data.episodes import Episode
from offline.spec import ActionSpec
from robots.datasets.robomimic_hdf5 import RobomimicHdf5, write_hdf5

SPEC = ActionSpec.from_bounds([-1, -1], [1, 1], names=("dx", "grip"), gripper=1, gripper_open=-1.0)


def make_episodes(count: int, *, image: bool = False, seed: int = 0) -> Iterator[Episode]:
    """Episode i has 5 + i steps; those with even i succeed at their last step."""
    random = np.random.default_rng(seed)
    for i in range(count):
        steps = 5 + i
        obs = {"state": random.normal(size=(steps + 1, 3)).astype(np.float32)}
        if image:
            obs["image"] = random.integers(0, 256, (steps + 1, 8, 6, 3), dtype=np.uint8)
        rewards = np.zeros(steps, np.float32)
        rewards[-1] = i % 2 == 0
        yield Episode(
            obs=obs,
            actions=random.uniform(-1, 1, (steps, 2)).astype(np.float32),
            rewards=rewards,
            terminated=i % 2 == 0,
            success=i % 2 == 0,
            language="push the cube" if i % 3 else "open the drawer",
            meta={"operator": "clean" if i < count // 2 else "sloppy", "seed": i},
        )


def write_example(path: Path, count: int = 6, **options: bool) -> RobomimicHdf5:
    """A robomimic file of `make_episodes`."""
    episodes = make_episodes(count, **options)
    return write_hdf5(path, episodes, spec=SPEC, env="toy/push", valid_fraction=0.34)


def same(one: Episode, other: Episode) -> None:
    """Assert that two episodes hold the same arrays."""
    assert sorted(one.obs) == sorted(other.obs)
    for key in one.obs:
        np.testing.assert_array_equal(one.obs[key], other.obs[key])
        assert one.obs[key].dtype == other.obs[key].dtype
    np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(one.rewards, other.rewards)
    assert one.terminated == other.terminated
