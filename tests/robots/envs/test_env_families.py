"""Each family of simulators behind one interface: seeds, keys, success and pictures."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from offline.errors import InputError
from robots.envs.env_names import check_env_name
from robots.envs.flat_observations import flat_observation, flat_spaces
from robots.envs.make import make_env
from robots.envs.ogbench_simulator import single_task

GOAL = {"observation", "achieved_goal", "desired_goal"}
FAMILIES = {  # name -> (library, observation keys, step limit, whether success is defined)
    "Hopper-v5": (None, {"state"}, 1000, False),
    "InvertedPendulum-v5": (None, {"state"}, 1000, False),
    "metaworld/pick-place-v3": ("metaworld", {"state"}, 200, True),
    "AdroitHandDoor-v1": ("gymnasium_robotics", {"state"}, 200, True),
    "AdroitHandDoorSparse-v1": ("gymnasium_robotics", {"state"}, 200, True),
    "FetchPush-v4": ("gymnasium_robotics", GOAL, 50, True),
    "FrankaKitchen-v1": ("gymnasium_robotics", None, 280, True),
    "PointMaze_UMaze-v3": ("gymnasium_robotics", GOAL, 300, True),
    "AntMaze_UMaze-v5": ("gymnasium_robotics", GOAL, 700, True),
    "ogbench/cube-single-v0": ("ogbench", {"state"}, 200, True),
    "scene-singletask-task2-v0": ("ogbench", {"state"}, 750, True),
    "ogbench/puzzle-3x3-v0": ("ogbench", {"state"}, 500, True),
    "ogbench/pointmaze-teleport-v0": ("ogbench", {"state"}, 1000, True),
    "ogbench/antmaze-medium-v0": ("ogbench", {"state"}, 1000, True),
}


@cache  # OGBench's arm takes seconds to make
def made(name: str):
    library = FAMILIES[name][0]
    if library is not None:
        pytest.importorskip(library)
    return make_env(name, render_size=48)


def roll(env, seed: int, steps: int = 20) -> dict[str, np.ndarray]:
    """Observations under random actions that are the same every time."""
    rng = np.random.default_rng(0)
    seen = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        seen.append(env.step(rng.uniform(env.action_spec.low, env.action_spec.high))[0])
    return {key: np.stack([obs[key] for obs in seen]) for key in seen[0]}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_seed_fixes_the_layout_and_all_that_follows(name):
    env = made(name)
    once = roll(env, 7)
    other = roll(env, 8, steps=3)
    np.random.random()  # numpy's global generator is not part of it
    again = roll(env, 7)
    assert all(np.array_equal(once[key], again[key]) for key in once)
    assert any(not np.array_equal(once[key][0], other[key][0]) for key in once)


@pytest.mark.parametrize(
    "name", ["FetchPush-v4", "AntMaze_UMaze-v5", "ogbench/cube-single-v0", "AdroitHandDoor-v1"]
)
def test_another_environment_with_the_same_seed_is_the_same(name):
    env = made(name)
    roll(env, 1, steps=3)
    once, fresh = roll(env, 7), roll(make_env(name), 7)
    assert all(np.array_equal(once[key], fresh[key]) for key in once)


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_limits_and_success(name):
    _, keys, limit, has_success = FAMILIES[name]
    env = made(name)
    obs, info = env.reset(seed=0)
    assert keys is None or set(obs) == keys
    assert env.max_steps == limit and env.has_success == has_success
    assert env.observation_space.contains(obs) and info["success"] is False
    obs, _, terminated, truncated, info = env.step(np.zeros(env.action_spec.dim))
    assert env.observation_space.contains(obs)
    assert {values.dtype for values in obs.values()} == {np.dtype(np.float32)}
    assert (terminated, truncated, info["success"]) == (False, False, False)


def test_what_a_reset_draws_from_numpys_global_generator_does_not_disturb_it():
    env = made("ogbench/pointmaze-teleport-v0")
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    roll(env, 1, steps=2)
    assert np.random.random() == expected


def test_the_kitchens_nested_goals_are_keys_and_success_is_all_of_its_tasks():
    env = made("FrankaKitchen-v1")
    obs, _ = env.reset(seed=0)
    assert {"observation", "achieved_goal_microwave", "desired_goal_slide_cabinet"} <= set(obs)
    assert obs["desired_goal_kettle"].shape == (7,)
    raw = env.simulator.raw.unwrapped
    still = np.zeros(env.action_spec.dim)
    raw.tasks_to_complete = {"microwave"}
    assert env.step(still)[4]["success"] is False
    raw.tasks_to_complete = set()
    assert env.step(still)[4]["success"] is True


def test_a_maze_succeeds_at_its_goal():
    env = made("PointMaze_UMaze-v3")
    env.reset(seed=0)
    still = np.zeros(2)
    assert env.step(still)[4]["success"] is False
    raw = env.simulator.raw.unwrapped
    raw.goal = raw.point_env.data.qpos[:2].copy()
    assert env.step(still)[4]["success"] is True


def test_a_cube_at_its_goal_is_success_in_the_same_step():
    env = made("ogbench/cube-single-v0")
    env.reset(seed=0)
    still = np.zeros(5)
    _, reward, terminated, _, info = env.step(still)
    assert (reward, terminated, info["success"]) == (-1.0, False, False)
    raw = env.simulator.raw.unwrapped
    raw._data.joint("object_joint_0").qpos[:3] = raw._data.mocap_pos[0]
    _, reward, terminated, _, info = env.step(still)
    assert (reward, terminated, info["success"]) == (0.0, True, True)


def test_which_of_ogbenchs_five_tasks_it_is():
    env = made("ogbench/cube-single-v0")
    env.reset(seed=0)
    assert env.simulator.raw.unwrapped.cur_task_id == 1
    for id_ in ("cube-single-singletask-task4-v0", "cube-single-singletask-v0", "Hopper-v5"):
        assert single_task(id_) == id_  # the second without a number is OGBench's own choice


@pytest.mark.parametrize(
    "name", ["AdroitHandDoor-v1", "FrankaKitchen-v1", "AntMaze_UMaze-v5", "ogbench/cube-single-v0"]
)
def test_pictures(name):
    env = made(name)
    env.reset(seed=0)
    try:
        picture = env.render()
    except InputError as error:
        pytest.skip(str(error))
    assert picture.shape == (48, 48, 3) and picture.std() > 10


def test_what_is_no_mujoco_cannot_be_drawn():
    env = make_env("Pendulum-v1")
    env.reset(seed=0)
    with pytest.raises(InputError, match="only MuJoCo environments can be drawn, not PendulumEnv"):
        env.render()


@pytest.mark.parametrize(
    ("library", "name", "said"),
    [
        (None, "CartPole-v1", r'"CartPole-v1" has actions Discrete\(2\); a continuous vector'),
        ("ogbench", "ogbench/powderworld-easy-v0", "a continuous vector is needed"),
        ("ogbench", "ogbench/cube-sinlge-v0", 'mean "ogbench/cube-single-v0"'),
        ("ogbench", "cube-sinlge-v0", 'mean "cube-single-v0"'),
        ("gymnasium_robotics", "AdroitHandDor-v1", 'mean "AdroitHandDoor-v1"'),
    ],
)
def test_what_cannot_be_made(library, name, said):
    if library is not None:
        pytest.importorskip(library)
    with pytest.raises(InputError, match=said) as error:
        make_env(name)
    assert "\n" not in str(error.value)


def test_robosuite_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "robosuite", None)
    with pytest.raises(InputError, match=r'pip install "genpol\[robosuite\]"'):
        check_env_name("robosuite/Lift")


@pytest.mark.slow  # its first step compiles for a minute
def test_robosuite():
    pytest.importorskip("robosuite")
    env = make_env("robosuite/Lift")
    once, other, again = roll(env, 7), roll(env, 8, steps=1), roll(env, 7)
    assert all(np.array_equal(once[key], again[key]) for key in once)
    assert {"object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"} <= set(once)
    assert not np.array_equal(once["object"][0], other["object"][0])
    assert env.has_success and env.step(np.zeros(7))[4]["success"] is False
    raw = env.simulator.raw
    raw.sim.data.set_joint_qpos(raw.cube.joints[0], np.array([0, 0, 1.0, 1, 0, 0, 0]))
    assert env.step(np.zeros(7))[4]["success"] is True


def test_observations_are_flattened_and_copied():
    from gymnasium.spaces import Box, Dict, Discrete

    box = Box(-1, 1, (2,), np.float64)
    spaces = flat_spaces("toy", Dict({"a": Dict({"b c": box}), "d": box}))
    assert list(spaces) == ["a_b_c", "d"] and spaces["d"].dtype == np.float32
    buffer = np.ones(2)
    obs = flat_observation({"a": {"b c": buffer}, "d": buffer}, spaces)
    buffer[:] = 5
    assert obs["a_b_c"].tolist() == [1, 1] and obs["d"].dtype == np.float32
    image = flat_spaces("toy", Box(0, 255, (4, 4, 3), np.uint8))
    assert list(image) == ["image"] and image["image"].dtype == np.uint8
    with pytest.raises(InputError, match="observes a as Discrete"):
        flat_spaces("toy", Dict({"a": Discrete(3)}))
    with pytest.raises(InputError, match='observes "a_b" twice'):
        flat_spaces("toy", Dict({"a": Dict({"b": box}), "a_b": box}))
