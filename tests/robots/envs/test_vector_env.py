"""Vector environments: each as if it were alone, reset when and only when told."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from offline.errors import InputError
from robots.envs.make import make_env
from robots.envs.vector_env import make_vector_env

HOPPER = "Hopper-v5"


def actions(steps: int, num_envs: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, num_envs, 3)).astype(np.float32)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_each_is_as_if_it_were_alone(asynchronous):
    envs = make_vector_env(HOPPER, 2, max_steps=9, asynchronous=asynchronous)
    try:
        obs, info = envs.reset(seed=[5, 6])
        assert obs["state"].shape == (2, 11) and info["seed"].tolist() == [5, 6]
        assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        alone = [make_env(HOPPER, max_steps=9) for _ in range(2)]
        for env, seed in zip(alone, (5, 6), strict=True):
            env.reset(seed=seed)
        for action in actions(9, 2):
            obs, rewards, terminated, truncated, info = envs.step(action)
            for i, env in enumerate(alone):
                expected = env.step(action[i])
                assert np.array_equal(obs["state"][i], expected[0]["state"])
                assert (rewards[i], terminated[i], truncated[i]) == expected[1:4]
        assert truncated.all() and info["success"].tolist() == [False, False]
    finally:
        envs.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_only_those_in_the_mask_are_reset(asynchronous):
    envs = make_vector_env(HOPPER, 3, max_steps=50, asynchronous=asynchronous)
    try:
        first, _ = envs.reset(seed=[1, 2, 3])
        moved = envs.step(actions(1, 3)[0])[0]["state"]
        over = np.array([False, True, False])
        obs, _ = envs.reset(seed=[7, 2, 9], options={"reset_mask": over})
        assert np.array_equal(obs["state"][1], first["state"][1])
        assert np.array_equal(obs["state"][[0, 2]], moved[[0, 2]])
    finally:
        envs.close()


def test_an_episode_that_is_over_waits_for_its_reset():
    envs = make_vector_env(HOPPER, 1, max_steps=1)
    envs.reset(seed=[0])
    step = actions(1, 1)[0]
    assert envs.step(step)[3].all()
    with pytest.raises(AssertionError):
        envs.step(step)
    envs.reset(seed=[1], options={"reset_mask": np.array([True])})
    envs.step(step)


@pytest.mark.slow  # a new interpreter
def test_images_in_processes_of_their_own():
    try:
        make_env(HOPPER, image_keys={"image": 16}).reset(seed=0)
    except InputError as error:
        pytest.skip(str(error))
    envs = make_vector_env(HOPPER, 1, image_keys={"image": 16}, asynchronous=True)
    try:
        assert envs.reset(seed=[0])[0]["image"].shape == (1, 16, 16, 3)
    finally:
        envs.close()


@pytest.mark.parametrize(
    ("name", "count", "asynchronous", "said"),
    [
        (HOPPER, 0, False, "at least 1 environment, not 0"),
        ("CartPole-v1", 2, False, "a continuous vector is needed"),
        ("CartPole-v1", 2, True, "a continuous vector is needed"),
        ("Hoper-v5", 1, True, 'mean "Hopper-v5"'),
    ],
)
def test_bad_input(name, count, asynchronous, said):
    with pytest.raises(InputError, match=said):
        make_vector_env(name, count, asynchronous=asynchronous)
