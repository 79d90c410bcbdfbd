"""A training run that is stopped or killed and resumed equals one that is not, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import toy_reach
from toy_reach import LIMIT, write_demonstrations
from training_runs import (
    TINY,
    assert_same_run,
    interrupt_at,
    resume,
    rows,
    state,
    train,
    words,
)

import genpol

ROOT = Path(genpol.__file__).parents[1]


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("data") / "demos.hdf5")


@pytest.fixture(scope="module")
def straight(demos, tmp_path_factory) -> Path:
    """A run without a break."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert train(data=demos, output=folder) == 0
    return folder


def test_killed_and_resumed(straight, demos, tmp_path, monkeypatch):
    """Killed at step 24, after rows that the checkpoint of step 15 lacks."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 24, None)
        assert train(data=demos, output=run) == 130
    loop = state(run)["loop"]
    assert loop["counts"][0] == 15 and int(rows(run)[-1]["step"]) == 24
    assert 0 < len(loop["running"][0]["actions"]) < LIMIT  # in the middle of an episode
    assert len(loop["running"][0]["queue"]) == 1  # and of a chunk
    assert resume(run) == 0
    assert_same_run(run, straight)


def test_stopped_politely_and_resumed(straight, demos, tmp_path, monkeypatch, capfd):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 18, signal.SIGTERM)
        assert train(data=demos, output=run) == 143
    told = f"stopped after step 18; to continue: genpol train --resume {run}"
    assert told in capfd.readouterr().out
    assert state(run)["loop"]["counts"][0] == 18 and not (run / "summary.json").exists()
    assert resume(run) == 0
    assert_same_run(run, straight)


def test_stopped_in_an_evaluation_and_resumed(straight, demos, tmp_path, monkeypatch):
    """It is done again, whole; what was done of it leaves no trace."""
    from genpol.training.session import Session

    run, evaluate = tmp_path / "run", Session.evaluate

    def evaluated(self, stop):
        if self.loop.step == 12:
            signal.raise_signal(signal.SIGINT)
        return evaluate(self, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "evaluate", evaluated)
        assert train(data=demos, output=run) == 130
    assert state(run)["evaluated"] == 0 and state(run)["loop"]["counts"][0] == 12
    assert resume(run) == 0
    assert_same_run(run, straight)


def test_stopped_while_pretraining_starts_again(straight, demos, tmp_path, monkeypatch, capfd):
    from genpol.agents import make

    run, pretrain = tmp_path / "run", make.pretrain

    def pretrained(*args, **rest):
        signal.raise_signal(signal.SIGTERM)
        pretrain(*args, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(make, "pretrain", pretrained)
        assert train(data=demos, output=run) == 143
    assert "stopped while pretraining" in capfd.readouterr().out
    assert not (run / "checkpoints").exists()
    assert resume(run) == 0
    assert_same_run(run, straight)


def test_more_steps_than_first_asked_for(straight, demos, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(data=demos, output=run, steps=24) == 0
    before = (run / "summary.json").read_bytes()
    assert resume(run) == 0
    assert "has already run 24 steps; raise --steps" in "".join(capsys.readouterr())
    assert (run / "summary.json").read_bytes() == before
    assert resume(run, steps=36) == 0
    assert_same_run(run, straight)


def test_several_environments(demos, tmp_path, monkeypatch):
    """Their episodes stand at different steps when the run is stopped."""
    options = {"data": demos, "num_envs": 5, "log_every": 5, "seed": 1}
    assert train(**options, output=tmp_path / "straight") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 20, signal.SIGTERM)
        assert train(**options, output=tmp_path / "run") == 143
    lengths = {len(r["actions"]) for r in state(tmp_path / "run")["loop"]["running"]}
    assert len(lengths) > 1
    assert resume(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_an_environment_that_calls_sys_exit_is_an_error_and_the_run_goes_on(
    straight, demos, tmp_path, monkeypatch, capsys
):
    run, step, calls = tmp_path / "run", toy_reach.ToyReach.step, []

    def leaving(self, action):
        calls.append(action)
        if len(calls) == 70:  # in training, after a checkpoint
            sys.exit(0)
        return step(self, action)

    with monkeypatch.context() as patch:
        patch.setattr(toy_reach.ToyReach, "step", leaving)
        assert train(data=demos, output=run) == 2
    error = [x for x in capsys.readouterr().err.splitlines() if "error:" in x]
    assert len(error) == 1 and "ended by sys.exit(0) in leaving, " in error[0]
    assert newest(run) in (15, 30) and not (run / "summary.json").exists()
    assert resume(run) == 0
    assert_same_run(run, straight)


@pytest.mark.slow
def test_a_dataset_larger_than_memory(demos, tmp_path, monkeypatch, capfd):
    """Its stream goes on where it stood; a checkpoint of before cannot say where that was."""
    options = {"data": demos, "memory_gb": 1e-6, "agent": "bc"}
    assert train(**options, output=tmp_path / "straight") == 0
    run, old = tmp_path / "run", tmp_path / "old"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 18, signal.SIGTERM)
        assert train(**options, output=run) == 143
    shutil.copytree(run, old)
    assert len(state(run)["sources"]["data"]["buffered"]) > 0
    assert resume(run) == 0
    assert_same_run(run, tmp_path / "straight")
    assert "note:" not in capfd.readouterr().out
    path = old / "checkpoints" / "step-000018" / "state.json"
    text = path.read_text()
    path.write_text(text.replace('["data", {"dict"', '["dat", {"dict"'))
    assert path.read_text() != text
    assert resume(old) == 0
    assert "did not save where --data stood" in capfd.readouterr().out


def test_a_torn_first_sitting_starts_again(straight, tmp_path):
    """Only config.json and half a table are there: no checkpoint at all."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(straight / "config.json", run)
    (run / "metrics.csv").write_bytes((straight / "metrics.csv").read_bytes()[:-5])
    assert resume(run) == 0
    assert_same_run(run, straight)


def test_a_torn_checkpoint_costs_the_steps_since_the_one_before(straight, tmp_path, capsys):
    """Of steps 15, 30 and 36 the last two are kept."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    assert sorted(p.name for p in (run / "checkpoints").glob("step-*")) == [
        "step-000030",
        "step-000036",
    ]
    (run / "summary.json").unlink()
    newest_segment = max((run / "checkpoints" / "segments").glob("segment-000036-*"))
    newest_segment.write_bytes(newest_segment.read_bytes()[:-1])
    assert resume(run) == 0
    assert f"{newest_segment} is not the file that was written" in capsys.readouterr().err
    assert_same_run(run, straight)


VARIANTS = [
    *({"agent": agent} for agent in ("bestofn", "bc", "rlpd", "sac", "idql", "fql", "dsrl")),
    {"cache_age": 6, "adaptive_edit_scale": True, "backup": "decoupled"},
    {"candidates": "student"},
    {"candidates": "noise-filter"},
    {"critic_pretrain": "calql", "critic_pretrain_steps": 5, "n_step": 3, "utd": 0.5},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_agent_goes_on(options, demos, tmp_path, monkeypatch):
    options = options if options.get("agent") == "sac" else options | {"data": demos}
    assert train(**options, output=tmp_path / "straight") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 18, signal.SIGTERM)
        assert train(**options, output=tmp_path / "run") == 143
    assert resume(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", tmp_path / "straight")


# ------------------------------------------------------------------------ in a process of its own


def spawn(log: Path, *arguments: str) -> subprocess.Popen:
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, toy_reach.__file__, "train", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )


def newest(run: Path) -> int:
    """The step of the newest checkpoint; -1 without any."""
    names = [path.name for path in (run / "checkpoints").glob("step-??????")]
    return max((int(name.removeprefix("step-")) for name in names), default=-1)


@pytest.mark.slow
def test_twenty_kills_change_nothing(demos, tmp_path):
    """SIGKILL at random moments: most while it trains, some while the process starts."""
    run, log, moments = tmp_path / "run", tmp_path / "log", random.Random(0)
    options = TINY | {"data": demos, "checkpoint_every": 5, "eval_every": 15}
    first = words(**(options | {"steps": 100_000, "output": run}))
    reached = 0
    for number in range(20):
        started = (run / "config.json").exists()
        process = spawn(log, *(["--resume", str(run)] if started else first))
        goal, deadline = newest(run) + 1 + moments.randrange(12), time.monotonic() + 120
        try:
            if number % 5 == 4:  # at start-up, or soon after
                time.sleep(moments.uniform(0, 6))
            else:
                while newest(run) < goal:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.01)
                time.sleep(moments.uniform(0, 0.4))
        finally:
            process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL, log.read_text()
        assert newest(run) >= reached
        reached = newest(run)
    assert reached >= 50, "the kills came too early to show anything"
    assert resume(run, steps=reached + 12) == 0
    assert train(**options | {"steps": reached + 12}, output=tmp_path / "straight") == 0
    assert_same_run(run, tmp_path / "straight")
    assert list((run / "checkpoints").glob(".*")) == []


def test_a_run_goes_on_in_its_own_number_of_threads(demos, tmp_path, monkeypatch):
    """Sums are added up in another order in another number."""
    run, used = tmp_path / "run", []
    real = toy_reach.ToyReach.step

    def step(self, action):
        used.append(torch.get_num_threads())
        return real(self, action)

    before = torch.get_num_threads()
    assert train(data=demos, output=run, threads=before + 1) == 0
    assert json.loads((run / "config.json").read_text())["threads"] == before + 1
    monkeypatch.setattr(toy_reach.ToyReach, "step", step)
    assert resume(run, steps=40) == 0
    assert set(used) == {before + 1}
    used.clear()
    assert resume(run, steps=44, threads=before) == 0
    assert set(used) == {before}
    assert json.loads((run / "config.json").read_text())["threads"] == before
