"""The simulator as a model: from what was observed it does what the environment did."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offline.errors import InputError
from offline.models.imagination import imagine_chunk
from offline.models.world_model import StateLayout
from offline.spec import ActionSpec
from robots.envs.make import make_env
from robots.envs.simulator_model import PLACE, SimulatorModel

pytest.importorskip("mujoco")


def play(env, steps, seed=0):
    """Up to so many steps of an episode: states (T+1, D), actions (T, A), rewards and ends (T,)."""
    low, high = np.asarray(env.action_spec.low), np.asarray(env.action_spec.high)
    rng = np.random.default_rng(seed)
    states, actions, rewards, ends = [env.reset(seed=seed)[0]["state"]], [], [], []
    while len(actions) < steps and not any(ends):
        actions.append(rng.uniform(low, high).astype(np.float32))
        obs, reward, terminated, _, _ = env.step(actions[-1])
        states.append(obs["state"])
        rewards.append(reward)
        ends.append(terminated)
    return (torch.from_numpy(np.array(x)) for x in (states, actions, rewards, ends))


def model_of(env, **rest):
    dim = env.observation_space["state"].shape[0]
    return SimulatorModel(env.name, StateLayout({"state": dim}), env.action_spec, **rest)


@pytest.mark.parametrize("name", sorted(PLACE))
def test_it_steps_as_the_environment_does(name):
    env = make_env(name)
    states, actions, rewards, ends = play(env, 30)
    slow = torch.ones(len(actions), dtype=torch.bool)
    if name.startswith(("Hopper", "Walker2d", "InvertedDouble")):  # speeds that are not clipped
        slow = (states[:-1].abs() < 9.99).all(-1)
    assert slow.sum() >= min(len(actions), 10) // 2
    predicted = model_of(env).predict(states[:-1], env.action_spec.normalize(actions), None)
    # Observations are rounded to float32 and the solver starts elsewhere; contacts enlarge both.
    scale = states.abs().max().clamp(min=1)
    off = (predicted.next_state - states[1:])[slow].abs().max() / scale
    assert off < 2e-3
    # The ant is paid by where its torso was one stage of the integrator before the step began.
    atol = 0.1 if name.startswith("Ant") else 2e-3
    torch.testing.assert_close(predicted.reward[slow], rewards.float()[slow], atol=atol, rtol=1e-3)
    assert torch.equal(predicted.terminated[slow], ends[slow])
    moved = (states[1:] - states[:-1]).abs().max() / scale
    assert moved > 10 * off


def test_the_order_of_the_rows_does_not_matter():
    env = make_env("Hopper-v5")
    states, actions, *_ = play(env, 15)
    model, act = model_of(env), env.action_spec.normalize(actions)
    forth = model.predict(states[:-1], act, None)
    back = model.predict(states[:-1].flip(0), act.flip(0), None)
    assert torch.equal(forth.next_state, back.next_state.flip(0))
    assert torch.equal(forth.reward, back.reward.flip(0))


def test_a_chunk_is_the_episode():
    """Of ten steps, with the fall in it or not, as the replay would hold them."""
    env = make_env("InvertedPendulum-v5")
    states, actions, rewards, ends = play(env, 10)
    act = env.action_spec.normalize(actions)[None]
    chunk = imagine_chunk(model_of(env), states[:1], act, 0.9, None)
    powers = 0.9 ** torch.arange(len(rewards))
    torch.testing.assert_close(chunk.reward[0], (powers * rewards).sum().float())
    torch.testing.assert_close(chunk.next_state[0], states[-1], atol=1e-3, rtol=0)
    assert chunk.terminated.item() == bool(ends[-1])
    assert chunk.discount.item() == pytest.approx(0.0 if ends[-1] else 0.9**10)


def test_rewards_are_in_the_agents_units():
    env = make_env("InvertedPendulum-v5")
    states = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.19, 0.0, 3.0]])
    act = torch.zeros(2, 1)
    scaled = model_of(env, reward_scale=5.0).predict(states, act, None)
    assert scaled.reward.tolist() == [5.0, 0.0] and scaled.terminated.tolist() == [False, True]
    sparse = model_of(env, reward="sparse", discount=0.9).predict(states, act, None)
    assert sparse.reward.tolist() == pytest.approx([-1.0, -10.0])


def test_what_it_cannot_do_is_said():
    spec = ActionSpec.from_bounds([-1.0] * 3, [1.0] * 3)
    with pytest.raises(InputError, match='"Pusher-v5" cannot be put into the state'):
        SimulatorModel("Pusher-v5", StateLayout({"state": 23}), spec)
    layout = StateLayout({"distractors": 4, "state": 11})
    with pytest.raises(InputError, match=r"from \{'state': 11\} alone, .*drop --distractors"):
        SimulatorModel("Hopper-v5", layout, spec)
