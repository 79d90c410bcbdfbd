"""Environments of a user's own: by "module:name", by an id that a module registers, as a class."""

from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest
from toy_reach import LIMIT, ToyReach

from offline.errors import InputError
from robots.envs.env_names import check_env_name
from robots.envs.make import make_env
from robots.envs.simulated_env import SimulatedEnv
from robots.envs.simulators import GymnasiumSimulator
from robots.envs.vector_env import make_vector_env


class Truncating(ToyReach):
    """Ends its episodes by itself after three steps."""

    def reset(self, **options):
        self.count = 0
        return super().reset(**options)

    def step(self, action):
        self.count += 1
        state, reward, terminated, _, info = super().step(action)
        return state, reward, terminated, self.count >= 3, info


def limited():
    return gymnasium.wrappers.TimeLimit(gymnasium.make("ToyReach-v0"), 7)


def simulator():
    return GymnasiumSimulator("ToyReach-v0")


def layout(env: SimulatedEnv) -> np.ndarray:
    return env.reset(seed=5)[0]["state"]


def test_a_name_and_a_class_make_the_same_environment():
    by_name, by_class = make_env("toy_reach:ToyReach"), make_env(ToyReach)
    assert by_name.name == by_class.name == "toy_reach:ToyReach"
    assert np.array_equal(layout(by_name), layout(by_class))
    assert by_name.has_success and by_name.max_steps == 1000
    assert np.array_equal(layout(by_name), layout(make_env("ToyReach-v0")))


def test_an_id_is_registered_by_importing_its_module(tmp_path, monkeypatch):
    (tmp_path / "their_envs.py").write_text(
        "import gymnasium, toy_reach\n"
        "gymnasium.register('Theirs-v0', toy_reach.ToyReach, max_episode_steps=9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        check_env_name("their_envs:Theirs-v0")
        env = make_env("their_envs:Theirs-v0")
        assert env.max_steps == 9 and np.array_equal(layout(env), layout(make_env(ToyReach)))
        with pytest.raises(InputError, match='no environment "Their-v0". Did you mean "Theirs-v0"'):
            check_env_name("their_envs:Their-v0")
    finally:
        gymnasium.registry.pop("Theirs-v0", None)
        sys.modules.pop("their_envs", None)


def test_its_own_time_limit_is_kept():
    assert make_env("ToyReach-v0").max_steps == LIMIT
    env = make_env(Truncating)
    env.reset(seed=0)
    assert [env.step(np.zeros(2))[3] for _ in range(3)] == [False, False, True]
    short = make_env(Truncating, max_steps=2)
    short.reset(seed=0)
    assert [short.step(np.zeros(2))[3] for _ in range(2)] == [False, True]


def test_what_a_function_makes_is_taken():
    env = make_env(limited)
    assert env.name.endswith(":limited")
    env.reset(seed=0)
    assert [env.step(np.zeros(2))[3] for _ in range(7)] == [False] * 6 + [True]


def test_a_simulator_is_taken_as_it_is():
    env = make_env(simulator)
    assert isinstance(env.simulator, GymnasiumSimulator) and env.max_steps == LIMIT


def test_several_side_by_side():
    envs = make_vector_env(ToyReach, 3, max_steps=4)
    obs, _ = envs.reset(seed=[5, 5, 6])
    assert np.array_equal(obs["state"][0], obs["state"][1])
    assert not np.array_equal(obs["state"][0], obs["state"][2])
    envs.close()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("toy_reach:ToyReech", 'there is no "ToyReech". Did you mean "ToyReach"'),
        ("no_such_module:Env", "module no_such_module does not import"),
        ("toy_reach:LIMIT", "is a int, expected a class or function"),
        ("toy_reach.ToyReach", 'An environment of your own is "toy_reach:ToyReach"'),
        ("toy_reach:ToyChoice", "a continuous vector is needed"),
        (ToyReach(), "received a ToyReach: pass the class"),
        (dict, "made a dict, expected a gymnasium.Env"),
    ],
)
def test_what_is_no_environment_is_refused_in_one_line(env, said):
    with pytest.raises(InputError) as error:
        make_env(env)
    assert said in str(error.value) and "\n" not in str(error.value)
