"""Vector environments: each as if it were alone, reset when and only when told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState

from offline.errors import InputError
from robots.envs.make import make_env
from robots.envs.vector_env import make_vector_env
from robots.envs.worker_envs import WorkerEnvs

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


class Failing(gymnasium.Env):
    """Its second step fails, or kills its process."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    signal: int | None = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 2 and self.signal is not None:
            os.kill(os.getpid(), self.signal)
        if self.steps == 2:
            raise ArithmeticError("the simulation is unstable")
        return np.zeros(1), 0.0, False, False, {}


class Dying(Failing):
    signal = signal.SIGKILL


class Leaving(Failing):
    def step(self, action):
        if self.steps == 1:
            os._exit(0)
        return super().step(action)


def second_step(made) -> WorkerEnvs:
    envs = make_vector_env(made, 2, asynchronous=True, at_work=1)
    assert isinstance(envs, WorkerEnvs)
    envs.reset(seed=[0, 1])
    envs.step(np.zeros((2, 1), np.float32))
    return envs


@pytest.mark.parametrize(
    ("made", "error", "said"),
    [
        (Failing, ArithmeticError, "^the simulation is unstable$"),
        (
            Dying,
            InputError,
            "^the process of environment [01] ended by the signal SIGKILL: .*memory",
        ),
    ],
)
def test_what_happens_in_a_worker_is_one_line(made, error, said, capfd):
    envs = second_step(made)
    with pytest.raises(error, match=said):
        envs.step(np.zeros((2, 1), np.float32))
    envs.close()
    assert not any(process.is_alive() for process in envs.processes)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("made", "said"), [(Dying, "SIGKILL"), (Leaving, "with exit code 0")])
def test_who_dies_with_the_permit_to_compute_keeps_nobody_waiting(made, said, first, monkeypatch):
    """The other worker never gets it."""
    monkeypatch.setattr("robots.envs.worker_envs.POLITE", 0.3)
    envs, action = second_step(made), np.zeros(1, np.float32)
    try:
        envs.parent_pipes[first].send(("step", action))
        envs.processes[first].join(20)
        envs.parent_pipes[1 - first].send(("step", action))
        envs._state = AsyncState.WAITING_STEP
        with pytest.raises(InputError, match=f"environment {first} ended .*{said}"):
            envs.step_wait()
    finally:
        envs.close()


def test_workers_leave_signals_to_the_main_process():
    envs = second_step(Failing)
    try:
        for process in envs.processes:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(process.pid, number)
        envs.reset(seed=[0, 1])
        assert all(process.is_alive() for process in envs.processes)
    finally:
        envs.close()


KILLED = """
import os, signal
from robots.envs.vector_env import make_vector_env
envs = make_vector_env("Hopper-v5", 2, asynchronous=True)
print(*[process.pid for process in envs.processes], flush=True)
{end}
"""


@pytest.mark.slow  # a new interpreter, and up to a second until the workers look
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit(0)"])
def test_no_worker_outlives_the_main_process(end):
    ran = subprocess.run(
        [sys.executable, "-c", KILLED.format(end=end)], stdout=subprocess.PIPE, timeout=60
    )
    pids = [int(pid) for pid in ran.stdout.split()]
    until = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(os.path.exists(f"/proc/{pid}") for pid in pids)
