"""Environments: layouts fixed by seeds, limits, success, images, and names that are not there."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from offline.errors import InputError, SpecError
from robots.envs.make import check_env_name, layout_seed, make_env

pytest.importorskip("metaworld")

PUSH = "metaworld/push-v3"
STILL = np.zeros(4, np.float32)


@pytest.fixture(scope="module")
def push():
    return make_env(PUSH, max_steps=5)


def roll(env, seed: int, steps: int = 20) -> np.ndarray:
    """(steps + 1, D) states under actions that are the same every time."""
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, 4))
    states = [env.reset(seed=seed)[0]["state"]]
    return np.stack(states + [env.step(action)[0]["state"] for action in actions])


def test_a_seed_fixes_the_layout_and_all_that_follows(push):
    once = roll(push, 7)
    other = roll(push, 8)
    assert np.array_equal(roll(push, 7), once)  # whatever was played in between
    assert np.array_equal(roll(make_env(PUSH), 7), once)  # in another process too
    puck, goal = slice(4, 7), slice(36, 39)
    assert not np.array_equal(once[0, puck], other[0, puck])
    assert not np.array_equal(once[0, goal], other[0, goal])


def test_the_goal_is_seen_at_every_step(push):
    states = roll(push, 3)
    assert states.shape == (21, 39) and states.dtype == np.float32
    assert np.abs(states[0, 36:]).max() > 0.5  # about .8 m in front of the robot
    assert np.array_equal(states[:, 36:], np.tile(states[0, 36:], (21, 1)))


def test_without_a_seed_layouts_follow_from_the_last_one(push):
    push.reset(seed=1)
    following = [push.reset()[1]["seed"] for _ in range(2)]
    push.reset(seed=1)
    assert [push.reset()[1]["seed"] for _ in range(2)] == following
    assert following[0] != following[1]


def test_the_step_limit_truncates_and_does_not_terminate(push):
    push.reset(seed=0)
    ends = [push.step(STILL)[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]
    assert push.max_steps == 5 and make_env(PUSH).max_steps == 200


def test_episodes_longer_than_the_simulators_own_limit():
    env = make_env(PUSH, max_steps=502)
    env.reset(seed=0)
    assert [env.step(STILL)[3] for _ in range(502)][-2:] == [False, True]


def test_what_an_environment_says_of_itself(push):
    assert push.name == PUSH and push.language == "push" and push.has_success
    assert make_env("metaworld/pick-place-v3").language == "pick place"
    spec = push.action_spec
    assert spec.names == ("dx", "dy", "dz", "gripper") and spec.gripper == 3
    assert spec.low == (-1.0,) * 4 and spec.high == (1.0,) * 4
    obs, info = push.reset(seed=0)
    assert push.observation_space.contains(obs) and info["success"] is False


@pytest.mark.parametrize("opens", [True, False])
def test_the_gripper_opens_where_the_spec_says(opens):
    env = make_env(PUSH)
    env.reset(seed=0)
    value = env.action_spec.gripper_open if opens else -env.action_spec.gripper_open
    for _ in range(30):
        obs = env.step(np.array([0, 0, 0, value]))[0]
    assert (obs["state"][3] > 0.9) == opens  # share of the widest opening


def test_success_is_reported_where_the_puck_is_at_the_goal():
    env = make_env(PUSH)
    obs, _ = env.reset(seed=0)
    assert env.step(STILL)[4]["success"] is False
    env.simulator.raw._set_obj_xyz(np.array([*obs["state"][36:38], 0.02]))
    assert env.step(STILL)[4]["success"] is True


def test_actions_are_clipped_and_wrong_ones_refused(push):
    push.reset(seed=0)
    most = push.step(np.ones(4))[0]["state"]
    push.reset(seed=0)
    assert np.array_equal(push.step(np.full(4, 9.0))[0]["state"], most)
    with pytest.raises(SpecError, match=r"shape \(4,\), received \(2, 4\)"):
        push.step(np.zeros((2, 4)))
    with pytest.raises(SpecError, match="NaN"):
        push.step(np.array([0, 0, np.nan, 0]))


def test_stepping_before_a_reset_is_a_programmers_mistake():
    with pytest.raises(RuntimeError, match="reset"):
        make_env(PUSH).step(STILL)


@pytest.mark.parametrize(
    ("name", "keys", "limit"),
    [
        ("Hopper-v5", {"state"}, 1000),
        ("FetchReach-v4", {"observation", "achieved_goal", "desired_goal"}, 50),
        ("AdroitHandDoor-v1", {"state"}, 200),
    ],
)
def test_gymnasium_ids(name, keys, limit):
    if not name.startswith("Hopper"):
        pytest.importorskip("gymnasium_robotics")
    env = make_env(name)
    first, _ = env.reset(seed=4)
    again, _ = env.reset(seed=4)
    assert set(first) == keys and env.max_steps == limit and env.language is None
    assert all(np.array_equal(first[k], again[k]) for k in keys)
    obs, _, _, truncated, info = env.step(np.zeros(env.action_spec.dim))
    assert env.observation_space.contains(obs) and not truncated
    assert {v.dtype for v in obs.values()} == {np.dtype(np.float32)}
    assert info["success"] is False and env.has_success == (name != "Hopper-v5")


def test_fetch_succeeds_where_the_hand_reaches_the_goal():
    pytest.importorskip("gymnasium_robotics")
    env = make_env("FetchReach-v4")
    obs, _ = env.reset(seed=0)
    for _ in range(50):
        toward = 5 * (obs["desired_goal"] - obs["achieved_goal"])
        obs, _, _, truncated, info = env.step(np.array([*toward, 0]))
    assert truncated and info["success"] is True


def test_observations_stay_as_they_were_when_the_simulator_steps():
    env = make_env("Hopper-v5", max_steps=3)
    first, _ = env.reset(seed=0)
    kept = first["state"].copy()
    assert env.step(np.ones(3))[3] is False and np.array_equal(first["state"], kept)
    assert env.step(np.ones(3))[3] is False and env.step(np.ones(3))[3] is True


def test_images_are_upright_and_follow_the_scene():
    env = make_env(PUSH, image_keys={"image": 32, "large": 48}, render_size=40)
    try:
        obs, _ = env.reset(seed=0)
    except InputError as error:
        pytest.skip(str(error))
    assert obs["image"].shape == (32, 32, 3) and obs["large"].shape == (48, 48, 3)
    assert env.observation_space.contains(obs) and env.render().shape == (40, 40, 3)
    red = redness(obs["image"])
    assert red[:12].mean() > 3 * red[-8:].mean()  # the arm hangs from above, the table is below
    for _ in range(30):
        moved = env.step(np.array([0, 1, 0, 0]))[0]
    assert np.abs(moved["image"].astype(int) - obs["image"]).mean() > 1


def redness(image: np.ndarray) -> np.ndarray:
    """(h, w): how much redder than green; the arm is red, the table brown, the floor grey."""
    return np.clip(image[..., 0].astype(float) - image[..., 1] - 40, 0, None)


def test_environments_of_one_task_share_a_context_and_not_a_scene():
    envs = [make_env(PUSH, image_keys={"image": 32}) for _ in range(2)]
    try:
        first = [env.reset(seed=seed)[0]["image"] for env, seed in zip(envs, (1, 2), strict=True)]
    except InputError as error:
        pytest.skip(str(error))
    assert not np.array_equal(*first)
    assert np.array_equal(envs[0].reset(seed=2)[0]["image"], first[1])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("metaworld/pick-plce-v3", 'mean "metaworld/pick-place-v3"'),
        ("metaworld/push", 'mean "metaworld/push-v3"'),
        ("pick-place-v3", 'mean "metaworld/pick-place-v3"'),
        ("Hoper-v5", 'mean "Hopper-v5"'),
        ("xyzzy", '"metaworld/<task>-v3", "ogbench/<id>", "robosuite/<Task>" and'),
    ],
)
def test_misspelt_names(name, said):
    with pytest.raises(InputError) as error:
        check_env_name(name)
    assert said in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("CartPole-v1", {}, "a continuous vector is needed"),
        (PUSH, {"max_steps": 0}, "at least 1 step"),
        (PUSH, {"image_keys": {"image": 0}}, "pixels wide, not 0"),
        (PUSH, {"image_keys": {"state": 32}}, "already observes state"),
    ],
)
def test_what_cannot_be_made(name, options, said):
    with pytest.raises(InputError, match=said):
        make_env(name, **options)


def test_layout_seeds():
    purposes = ("collect", "evaluate")
    seeds = {(p, s, i): layout_seed(p, s, i) for p in purposes for s in (0, 1) for i in range(200)}
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    assert layout_seed("collect", 0, 0) == 757019465  # datasets on disk depend on it


def test_a_missing_library_is_named():
    code = (
        "import sys; sys.modules['metaworld'] = None\n"
        "from robots.envs.make import check_env_name\n"
        "check_env_name('metaworld/push-v3')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'needs metaworld, which is not installed: pip install "genpol[sim]"' in done.stderr
