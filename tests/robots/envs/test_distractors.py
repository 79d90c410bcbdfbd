"""Distractors: standardised, seeded, hard to predict, and of no consequence."""

from __future__ import annotations

import numpy as np
import pytest

from offline.errors import InputError
from robots.envs.distractors import Distracted, Distractors
from robots.envs.make import make_env
from robots.envs.vector_env import make_vector_env

pytest.importorskip("mujoco")
HOPPER = "Hopper-v5"


def watched(count, seed=0, steps=3000):
    bank = Distractors(count)
    return np.stack([bank.reset(seed)] + [bank.step() for _ in range(steps)])


def explained(features, targets):
    """(n,) share of the variance that is predicted linearly, on the half that was not fitted."""
    features = np.concatenate([features, np.ones((len(features), 1))], 1)
    half = len(features) // 2
    weights = np.linalg.lstsq(features[:half], targets[:half], rcond=None)[0]
    error = (targets[half:] - features[half:] @ weights) ** 2
    return 1 - error.mean(0) / targets[half:].var(0)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 20])
def test_scale(count):
    values = np.concatenate([watched(count, seed, 1500) for seed in range(4)])
    assert values.dtype == np.float32 and values.shape[1] == count
    assert np.abs(values.mean(0)).max() < 0.5 and np.abs(values).max() < 6
    assert (0.85 < values.std(0)).all() and (values.std(0) < 1.15).all()


def test_they_are_neither_linear_nor_free_of_noise():
    values = watched(10, steps=8000)
    now, moved = values[:-1], np.diff(values, axis=0)
    linear = explained(now, moved)
    x, v = now[:, :5], now[:, 5:]
    cubic = explained(np.concatenate([now, x**2, x**3, x**2 * v, x * v], 1), moved)
    assert (linear[:5] > 0.95).all()  # positions follow their velocities
    assert (linear[5:] < 0.6).all() and (cubic[5:] > 0.85).all()
    assert (cubic[5:] < 0.995).all()  # what the noise leaves


def test_they_are_coupled():
    """Two banks that differ in the first oscillator alone come to differ in the next ones."""
    bank = Distractors(10)
    rng = np.random.default_rng(0)
    one = 0.5 * rng.standard_normal(10)
    two = one.copy()
    two[0] += 0.5
    first, second = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(30):
        one, two = bank.advanced(one, first), bank.advanced(two, second)
    assert np.abs(one - two)[1] > 0.02 < np.abs(one - two)[2]


def test_the_seed_fixes_them():
    once = watched(7, 3, 50)
    assert np.array_equal(watched(7, 3, 50), once)
    assert (watched(7, 4, 50)[0] != once[0]).any()


def roll(env, seed=5, action_seed=0, steps=15):
    rng, rows = np.random.default_rng(action_seed), [env.reset(seed=seed)[0]]
    rewards = []
    for _ in range(steps):
        obs, reward, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape))
        rows.append(obs)
        rewards.append(reward)
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}, rewards


def test_they_change_nothing_and_nothing_changes_them():
    plain, rewards = roll(make_env(HOPPER))
    obs, same = roll(make_env(HOPPER, distractors=6))
    assert obs["distractors"].shape == (16, 6) and rewards == same
    assert np.array_equal(plain["state"], obs["state"])
    others, _ = roll(make_env(HOPPER, distractors=6), action_seed=1)
    assert np.array_equal(others["distractors"], obs["distractors"])
    assert not np.array_equal(others["state"], obs["state"])


def test_an_environment_with_them_is_one_like_any_other():
    env = make_env("Pendulum-v1", distractors=3)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    assert env.max_steps == 200 and env.action_spec.dim == 1 and not env.has_success
    assert env.simulator.raw.unwrapped is not None
    assert "distractors" not in make_env("Pendulum-v1").observation_space.spaces


@pytest.mark.parametrize("asynchronous", [False, True])
def test_side_by_side(asynchronous):
    envs = make_vector_env(HOPPER, 2, distractors=4, asynchronous=asynchronous)
    try:
        obs, _ = envs.reset(seed=[5, 6])
        alone = make_env(HOPPER, distractors=4)
        assert np.array_equal(obs["distractors"][1], alone.reset(seed=6)[0]["distractors"])
        act = np.zeros((2, 3), np.float32)
        expected = alone.step(act[1])[0]["distractors"]
        assert np.array_equal(envs.step(act)[0]["distractors"][1], expected)
    finally:
        envs.close()


def test_bad_input():
    with pytest.raises(InputError, match="--distractors must be at least 0, received -1"):
        make_env(HOPPER, distractors=-1)
    twice = make_env(HOPPER, distractors=1).simulator
    with pytest.raises(InputError, match='"Hopper-v5" already observes distractors'):
        Distracted(HOPPER, twice, 1)
