"""OGBench's experts: tasks solved in their own environment, and lights-out puzzles by hand."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from robots.envs.make import make_env
from robots.operators.collect import collect_modes, run_episode
from robots.operators.experts import CLEAN, Operator, modes
from robots.operators.ogbench_expert import OgbenchExpert, presses, toggled

pytest.importorskip("ogbench")
CUBE = "ogbench/cube-single-v0"
STILL = Operator("still", noise=0.0)


@cache
def made(name: str):
    return make_env(name)


def solve(name: str, seed: int = 0, operator: Operator = CLEAN):
    env = made(name)
    return run_episode(env, OgbenchExpert(env, operator, np.random.default_rng(seed)), seed)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        (CUBE, 120),
        ("ogbench/scene-singletask-task1-v0", 120),  # open drawer and window
        ("ogbench/puzzle-3x3-v0", 100),
    ],
)
def test_a_careful_expert_solves_it(name, limit):
    episode = solve(name)
    assert episode.success and episode.terminated and len(episode) < limit
    assert np.abs(episode.actions).max() <= 1 and episode.actions.dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [f"ogbench/scene-singletask-task{task}-v0" for task in (2, 3, 4, 5)]
    + ["ogbench/cube-triple-singletask-task5-v0", "ogbench/puzzle-4x4-v0"],
)
def test_a_careful_expert_solves_longer_ones(name):
    assert all(solve(name, seed).success for seed in range(3))


def test_demonstrations_of_two_modes_replay_in_the_environment_of_the_same_name():
    env = made(CUBE)
    episodes = list(collect_modes(env, 4, 0, modes(bias_min=0.005, bias_max=0.005)))
    assert sorted(e.meta["operator"] for e in episodes) == ["mode-x+"] * 2 + ["mode-y+"] * 2
    episode = episodes[0]
    actions = iter(episode.actions)
    again = run_episode(env, lambda obs: next(actions), episode.meta["seed"])
    assert np.array_equal(again.obs["state"], episode.obs["state"])
    assert again.success == episode.success
    second = list(collect_modes(env, 4, 0, modes(bias_min=0.005, bias_max=0.005)))[1]
    assert np.array_equal(second.actions, episodes[1].actions)


def test_the_operator_reaches_for_where_the_cube_is_thought_to_be():
    env = made(CUBE)
    env.reset(seed=0)
    exact = OgbenchExpert(env, STILL, np.random.default_rng(0))
    wrong = OgbenchExpert(env, Operator("m", 0, 0.03, 0.03, np.pi / 2), np.random.default_rng(0))
    obs = {}
    exact(obs), wrong(obs)
    cube = env.simulator.raw.unwrapped._data.joint("object_joint_0").qpos[:3]
    key = "privileged/block_0_pos"
    assert exact._seen()[key] == pytest.approx(cube)
    assert wrong._seen()[key] - cube == pytest.approx([0, 0.03, 0])


def test_only_ogbench_has_this_expert():
    with pytest.raises(TypeError, match="no OGBench environment"):
        OgbenchExpert(make_env("Hopper-v5"), STILL, np.random.default_rng(0))


def test_one_press_in_the_middle_is_undone_by_one_press():
    goal = np.zeros((3, 3), int)
    now = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    found = presses(now, goal)
    assert found.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("shape", [(3, 3), (4, 4), (4, 6)])
def test_presses_lead_from_any_reachable_board_to_the_goal(shape):
    rng = np.random.default_rng(0)
    for _ in range(3):
        goal, pressed = rng.integers(0, 2, (2, *shape))
        now = toggled(goal, pressed)
        found = presses(now, goal)
        assert np.array_equal(toggled(now, found), goal)
        assert found.sum() <= pressed.sum()  # the fewest


def test_what_cannot_be_solved_asks_for_nothing():
    now = np.zeros((4, 4), int)
    now[0, 0] = 1  # no presses toggle one corner alone on this board
    assert not presses(now, np.zeros((4, 4), int)).any()
