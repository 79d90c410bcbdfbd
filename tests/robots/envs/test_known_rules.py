"""Known rewards and terminations against what the environments themselves say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offline.errors import InputError
from offline.models.world_model import StateLayout
from offline.spec import ActionSpec
from robots.envs.known_rules import REWARD, TERMINATION, known_rules
from robots.envs.make import make_env

pytest.importorskip("mujoco")
SPEED = slice(5, 8)  # of two poles
ENDS = {"InvertedDoublePendulum", "Ant", "Hopper", "Humanoid", "InvertedPendulum", "Walker2d"}


def play(name, episodes=12, steps=60):
    """Episodes of large random actions, each held for a while, as flat tensors."""
    env, rng, rows = make_env(name, max_steps=steps), np.random.default_rng(0), []
    low, high = np.asarray(env.action_spec.low), np.asarray(env.action_spec.high)
    for seed in range(episodes):
        state = env.reset(seed=seed)[0]["state"]
        for t in range(steps):
            if t % 5 == 0:
                action = rng.uniform(low, high).astype(np.float32)
            obs, reward, terminated, _, _ = env.step(action)
            rows.append((state, action, obs["state"], reward, terminated))
            state = obs["state"]
            if terminated:
                break
    state, action, following, reward, terminated = (
        torch.from_numpy(np.stack([row[i] for row in rows])) for i in range(5)
    )
    return env.action_spec, state, action, following, reward.float(), terminated


def rules(name, known, spec, dim, **rest):
    return known_rules(name, known, StateLayout({"state": dim}), spec, **rest)


@pytest.mark.parametrize("name", sorted(TERMINATION))
def test_terminations(name):
    spec, state, action, following, _, expected = play(name)
    rule = rules(name, ["termination"], spec, state.shape[1]).terminated
    assert torch.equal(rule(state, spec.normalize(action), following), expected)
    assert expected.any() == (name.split("-")[0] in ENDS)
    assert not expected.all()


@pytest.mark.parametrize("name", sorted(REWARD))
def test_rewards(name):
    spec, state, action, following, expected, _ = play(name)
    rule = rules(name, ["reward"], spec, state.shape[1], reward_scale=2.0).reward
    reward = rule(state, spec.normalize(action), following)
    slow = torch.ones(len(state), dtype=torch.bool)
    if "Double" in name:  # faster than 10 rad/s is not seen
        slow = (following[:, SPEED].abs() < 9.99).all(-1)
        assert slow.float().mean() > 0.5
    # MuJoCo places the tip one stage of its integrator before the end of the step.
    atol = 1e-3 if "Double" in name else 1e-5
    torch.testing.assert_close(reward[slow], 2 * expected[slow], atol=atol, rtol=1e-4)
    assert expected.std() > 0 or name.endswith("InvertedPendulum-v4")


def test_other_observations_may_stand_beside_the_state():
    layout = StateLayout({"distractors": 2, "state": 4})
    spec = ActionSpec.from_bounds([-3.0], [3.0])
    state = torch.tensor([[9.0, 9.0, 0.0, 0.1, 0.0, 0.0], [9.0, 9.0, 0.0, 0.3, 0.0, 0.0]])
    both = known_rules("InvertedPendulum-v5", ("reward", "termination"), layout, spec)
    act = torch.zeros(2, 1)
    assert both.terminated(state, act, state).tolist() == [False, True]
    assert both.reward(state, act, state).tolist() == [1.0, 0.0]
    neither = known_rules("InvertedPendulum-v5", (), layout, spec)
    assert neither.reward is None and neither.terminated is None


def test_what_is_not_known_is_said():
    spec = ActionSpec.from_bounds([-1.0], [1.0])
    with pytest.raises(InputError, match='the reward of "Hopper-v5" is not known.*--known reward'):
        rules("Hopper-v5", ["reward"], spec, 11)
    with pytest.raises(InputError, match='termination of "Hopper-v9".*"Hopper-v5"'):
        rules("Hopper-v9", ["termination"], spec, 11)
    with pytest.raises(InputError, match='need the observation "state", which is not among other'):
        known_rules("Hopper-v5", ["termination"], StateLayout({"other": 1}), spec)
