"""Environments in processes of their own: the same run bit for bit, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_reach
from toy_reach import write_demonstrations
from training_runs import TINY, assert_same_run, interrupt_at, resume, rows, state, train, words

import genpol

ROOT = Path(genpol.__file__).parents[1]


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    demos = write_demonstrations(tmp_path_factory.mktemp("data") / "demos.hdf5")
    few = {"steps": 24, "eval_every": 24, "eval_episodes": 1, "pretrain_steps": 2}
    return few | {"data": demos, "num_envs": 3, "log_every": 3, "seed": 1}


@pytest.fixture(scope="module")
def straight(options, tmp_path_factory) -> Path:
    """A run in one process, without a break."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert train(**options, output=folder) == 0
    return folder


def test_stopped_with_workers_and_resumed(options, straight, tmp_path, monkeypatch):
    """The episodes are played again in new processes; then without any."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9, signal.SIGTERM)
        assert train(**options, env_workers=2, output=run) == 143
    assert state(run)["loop"]["counts"][0] == 9
    with monkeypatch.context() as patch:
        interrupt_at(patch, 18, signal.SIGINT)
        assert resume(run) == 130
    assert resume(run, env_workers=0) == 0
    assert_same_run(run, straight)


def test_a_worker_that_is_killed_ends_the_run_which_goes_on(
    options, straight, tmp_path, monkeypatch, capsys
):
    run, step, calls, here = tmp_path / "run", toy_reach.ToyReach.step, [], os.getpid()

    def dying(self, action):
        calls.append(action)
        if os.getpid() != here and len(calls) == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, action)

    with monkeypatch.context() as patch:
        patch.setattr(toy_reach.ToyReach, "step", dying)
        assert train(**options, env_workers=3, checkpoint_every=6, output=run) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert re.search("the process of environment [012] ended by the signal SIGKILL", errors[0])
    assert "continue with --resume" in errors[0]
    assert resume(run) == 0
    assert rows(run)[-1]["step"] == "24"


def test_more_workers_than_environments_is_one_line(options, tmp_path, capsys):
    assert train(**options, env_workers=4, output=tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert "--env-workers 4 is more than there are environments: pass at most --num-envs" in told


@pytest.mark.slow  # a new interpreter
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_group_leaves_no_worker(options, straight, tmp_path, number):
    run = tmp_path / "run"
    arguments = words(**(TINY | options | {"steps": 100_000, "output": run, "env_workers": 3}))
    script = Path(toy_reach.__file__)
    process = subprocess.Popen(
        [sys.executable, str(script), "train", *arguments],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 120
        while not (run / "checkpoints").is_dir() and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(1)
        if number == signal.SIGKILL:
            process.kill()  # it alone: the workers see that it is gone
        else:
            os.killpg(process.pid, number)
        assert process.wait(60) == (-9 if number == signal.SIGKILL else 128 + number)
        until = time.monotonic() + 20
        while group_lives(process.pid) and time.monotonic() < until:
            time.sleep(0.2)
        assert not group_lives(process.pid)
    finally:
        if group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
