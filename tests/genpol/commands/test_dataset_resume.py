"""A clone or critic that is stopped, killed or diverges goes on, bit for bit."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
import toy_data
from dataset_runs import (
    SHARED,
    SMALL,
    STREAMED,
    assert_same_run,
    interrupt_at,
    learn,
    learnt,
    resume,
    rows,
    state,
    write_demonstrations,
)
from training_runs import words

import genpol
from genpol.policies.policy import load_policy
from offline.critics.value import ValueFunction

ROOT = Path(genpol.__file__).parents[1]
KINDS = {
    "diffusion": ("clone", {"policy": "diffusion"}),
    "flow": ("clone", {"policy": "flow"}),
    "gaussian": ("clone", {"policy": "gaussian"}),
    "calql": ("value", {"critic": "calql"}),
    "iql": ("value", {"critic": "iql"}),
}
FAST = [("diffusion", False), ("flow", True), ("gaussian", False), ("calql", True), ("iql", False)]
SLOW = [pair for pair in itertools.product(KINDS, (False, True)) if pair not in FAST]


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("data") / "demos.hdf5")


def newest(run: Path) -> int:
    """The step of the newest checkpoint; -1 without any."""
    names = [path.name for path in (run / "checkpoints").glob("step-??????")]
    return max((int(name.removeprefix("step-")) for name in names), default=-1)


def check(kind: str, streamed: bool, demos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Stopped at step 11 and killed at step 20, after two rows that the checkpoint of 14 lacks."""
    command, options = KINDS[kind]
    options = options | (STREAMED if streamed else {})
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert learn(command, demos, straight, **options) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 11, signal.SIGTERM)
        assert learn(command, demos, run, **options) == 143
    told = f"stopped after step 11 of 24; to continue: genpol {command} --resume {run}\n"
    assert told in capsys.readouterr().out
    assert newest(run) == 11 and not (run / "summary.json").exists()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 20, None)
        assert resume(command, run) == 130
    assert newest(run) == 14 and rows(run)[-1]["step"] == "20"
    assert bool(len(state(run)["steps"]["learning"]["train"]["buffered"])) == streamed
    assert resume(command, run) == 0
    assert_same_run(run, straight)


@pytest.mark.parametrize(("kind", "streamed"), FAST)
def test_stopped_and_killed_and_resumed(kind, streamed, demos, tmp_path, monkeypatch, capsys):
    check(kind, streamed, demos, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "streamed"), SLOW)
def test_every_kind(kind, streamed, demos, tmp_path, monkeypatch, capsys):
    check(kind, streamed, demos, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["clone", "value"])
@pytest.mark.parametrize("streamed", [False, True])
def test_images(command, streamed, tmp_path, monkeypatch):
    data = write_demonstrations(tmp_path / "images.hdf5", image=True)
    options = {"image_keys": "camera", "random_shift": 1} | (
        {"memory_gb": 1e-4} if streamed else {}
    )
    assert learn(command, data, tmp_path / "straight", **options) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 11, signal.SIGINT)
        assert learn(command, data, tmp_path / "run", **options) == 130
    assert resume(command, tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_what_an_unfinished_run_leaves(demos, tmp_path, monkeypatch):
    """A policy that can be used, says what it is, and no summary; what is kept of checkpoints."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, 16, signal.SIGTERM)
        assert learn("clone", demos, tmp_path / "run", policy="gaussian") == 143
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-000014",
        "step-000016",
    ]
    with pytest.warns(UserWarning, match="unfinished, it has taken 16 of 24 steps: go on with its"):
        policy = load_policy(tmp_path / "run")
    assert policy.meta["steps"] == 16
    assert resume("clone", tmp_path / "run", keep_checkpoints=1, checkpoint_every=20) == 0
    assert newest(tmp_path / "run") == 24
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    assert "unfinished" not in load_policy(tmp_path / "run").meta  # nor is there a warning


def test_stopped_before_the_first_step(demos, tmp_path, monkeypatch, capsys):
    from genpol.training.dataset_session import DatasetSession

    go_on = DatasetSession.go_on

    def stopped(self, stop):
        signal.raise_signal(signal.SIGTERM)
        return go_on(self, stop)

    options = {"policy": "gaussian"}
    assert learn("clone", demos, tmp_path / "straight", **options) == 0
    with monkeypatch.context() as patch:
        patch.setattr(DatasetSession, "go_on", stopped)
        assert learn("clone", demos, tmp_path / "run", **options) == 143
    assert "stopped after step 0 of 24" in capsys.readouterr().out
    assert not (tmp_path / "run" / "policy").exists()
    assert resume("clone", tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_killed_before_the_last_row(demos, tmp_path, monkeypatch):
    """All steps are taken, but the held-out report and the summary are missing."""
    from genpol.training.dataset_session import DatasetSession

    def killed(self):
        raise KeyboardInterrupt

    assert learn("value", demos, tmp_path / "straight") == 0
    with monkeypatch.context() as patch:
        patch.setattr(DatasetSession, "finish", killed)
        assert learn("value", demos, tmp_path / "run") == 130
    assert newest(tmp_path / "run") == 24
    assert resume("value", tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_a_finished_run_stays_as_it_is(demos, tmp_path, capsys):
    run = tmp_path / "run"
    assert learn("clone", demos, run, policy="gaussian") == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert resume("clone", run) == 0
    assert f"{run} has already run 24 steps" in "".join(capsys.readouterr())
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_critic_may_be_given_more_steps(demos, tmp_path, monkeypatch):
    """Its weights are those of a run that was asked for them at once. The row at the first end
    stays, with the report that it had."""
    assert learn("value", demos, tmp_path / "straight", steps=24) == 0
    run = tmp_path / "run"
    assert learn("value", demos, run, steps=15) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 18, signal.SIGTERM)
        assert resume("value", run, steps=24) == 143
    assert not (run / "summary.json").exists()
    assert resume("value", run) == 0
    first = {"value/auc_success", "value/bias"}
    changed = [r for r in rows(run) if r["step"] == "15"][0]
    assert all(changed[name] for name in first)
    others = [[r for r in rows(f) if r["step"] != "15"] for f in (run, tmp_path / "straight")]
    assert others[0] == others[1]
    one, two = learnt(run), learnt(tmp_path / "straight")
    assert one["value.safetensors"] == two["value.safetensors"]


def test_a_clone_may_not_and_says_why(demos, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8, signal.SIGTERM)
        assert learn("clone", demos, tmp_path / "run", policy="gaussian") == 143
    capsys.readouterr()
    assert resume("clone", tmp_path / "run", steps=48) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "--steps 48 differs from 24" in error and "falls to zero at --steps" in error
    assert resume("clone", tmp_path / "run", batch_size=9) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "--batch-size 9 differs from 8" in error and "falls to zero" not in error


@pytest.mark.parametrize("changed", ["rewards", "obs/state"])
def test_another_dataset_is_refused_and_the_same_elsewhere_is_not(
    changed, demos, tmp_path, monkeypatch, capsys
):
    data, run = tmp_path / "demos.hdf5", tmp_path / "run"
    shutil.copy(demos, data)
    options = {"critic": "iql", "reward": "dataset"}
    assert learn("value", data, tmp_path / "straight", **options) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8, signal.SIGTERM)
        assert learn("value", data, run, **options) == 143
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with h5py.File(data, "r+") as file:
        file[f"data/demo_20/{changed}"][0] += 0.01
    capsys.readouterr()
    assert resume("value", run) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "has changed since the run" in error and "fingerprint" in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert resume("value", run, data=demos) == 0
    one, two = learnt(run), learnt(tmp_path / "straight")
    assert one["value.safetensors"] == two["value.safetensors"]
    assert ValueFunction.load(run).meta["data"] == str(demos)


@pytest.mark.parametrize("command", ["clone", "value"])
def test_a_run_that_diverges_keeps_what_was_good_and_goes_on_from_it(
    command, demos, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    options = {"policy": "gaussian"} if command == "clone" else {"critic": "iql"}
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8, signal.SIGTERM)
        assert learn(command, demos, run, **options) == 143
    good = learnt(run)
    capsys.readouterr()
    assert resume(command, run, lr=1e30) == 2
    (error,) = [x for x in capsys.readouterr().err.splitlines() if "error:" in x]
    assert "diverged at step" in error and "try a smaller --lr" in error
    assert "the checkpoint of step 8 is kept: continue with genpol" in error
    assert newest(run) == 8 and learnt(run) == good
    assert all("nan" not in row.values() for row in rows(run))
    assert resume(command, run, lr=1e-4) == 0
    assert learnt(run).keys() == good.keys()
    assert json.loads((run / "config.json").read_text())["lr"] == 1e-4


def test_a_run_of_before_without_checkpoints_is_refused(tmp_path, monkeypatch, capsys):
    old = Path(__file__).parents[2] / "old_runs"
    shutil.copytree(old, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    before = Path("clone-flow/metrics.csv").read_bytes()
    assert resume("clone", Path("clone-flow")) == 2
    error = [x for x in capsys.readouterr().err.splitlines() if "error:" in x]
    assert len(error) == 1 and "without checkpoints" in error[0]
    assert Path("clone-flow/metrics.csv").read_bytes() == before


# ------------------------------------------------------------------------ in a process of its own


def spawn(log: Path, *arguments: str) -> subprocess.Popen:
    helpers = Path(toy_data.__file__).parent
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "genpol", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{helpers}"},
        )


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has loaded is read in /proc")
def test_sigterm_while_it_loads_is_143_in_one_line(demos, tmp_path):
    process = spawn(
        tmp_path / "log", "clone", "--data", str(demos), "--output", str(tmp_path / "r")
    )
    try:
        until = time.monotonic() + 60
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    finally:
        process.kill()
    assert code == 143 and (tmp_path / "log").read_text() == "interrupted\n"
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "streamed"), [("flow", True), ("calql", False)])
def test_kills_change_nothing(kind, streamed, demos, tmp_path):
    """SIGKILL and SIGTERM at random moments, most while it trains, some while it starts."""
    run, log, moments = tmp_path / "run", tmp_path / "log", random.Random(0)
    command, options = KINDS[kind]
    options = SHARED | SMALL[command] | options | (STREAMED if streamed else {})
    options |= {"steps": 1500, "checkpoint_every": 50, "log_every": 7}
    first = words(**options, data=demos, output=run)
    for number in range(10):
        started = (run / "config.json").exists()
        process = spawn(log, command, *(words(resume=run) if started else first))
        goal, deadline = newest(run) + 1 + moments.randrange(120), time.monotonic() + 120
        try:
            if number % 5 == 4:
                time.sleep(moments.uniform(0, 6))
            else:
                while newest(run) < goal:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.005)
            which = signal.SIGTERM if number % 3 == 1 else signal.SIGKILL
            process.send_signal(which)
            code = process.wait(60)
        finally:
            process.kill()
        assert code in (-which, 128 + which), log.read_text()
    assert 0 < newest(run) < 1500, "the signals came too early or too late to show anything"
    assert resume(command, run) == 0
    assert learn(command, demos, tmp_path / "straight", **options) == 0
    assert_same_run(run, tmp_path / "straight")
    assert list(run.glob("checkpoints/.*")) == [] and not (run / ".lock").exists()
