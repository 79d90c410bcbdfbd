"""A run that is stopped, killed or out of disk goes on bit for bit."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_runs
import torch
from forked import forked
from small_runs import (
    SMALL,
    assert_same_checkpoint,
    checkpoint,
    finetune,
    lasting,
    resume,
    words,
)

HELPERS = Path(small_runs.__file__).parent


def smooth(models, prompts) -> dict:
    return {
        "model": models["sd"],
        "prompts": prompts,
        "reward": "tiny_rewards:brightness",
        "num_inference_steps": 2,
        "eval_every": 1,
        "ema": 0.9,
    }


@pytest.fixture(scope="module")
def straight(models, prompts, tmp_path_factory) -> Path:
    """Three epochs without a break."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert finetune(output=folder, epochs=3, **smooth(models, prompts)) == 0
    return folder


@pytest.fixture(scope="module")
def first_epoch(models, prompts, tmp_path_factory) -> Path:
    """The run of one epoch that others go on from."""
    folder = tmp_path_factory.mktemp("first") / "run"
    assert finetune(output=folder, epochs=1, **smooth(models, prompts)) == 0
    return folder


@pytest.fixture
def run(first_epoch, tmp_path) -> Path:
    """A copy of `first_epoch`, to go on with."""
    return shutil.copytree(first_epoch, tmp_path / "run")


def summary(folder: Path) -> dict[str, float]:
    numbers = json.loads((folder / "summary.json").read_text())
    return {k: v for k, v in numbers.items() if not k.startswith("time/")}


def lora(folder: Path) -> bytes:
    return (folder / "lora" / "pytorch_lora_weights.safetensors").read_bytes()


def test_one_epoch_and_two_more_are_three(straight, run):
    early = checkpoint(run)[1]
    assert resume(run, epochs=3) == 0
    assert_same_checkpoint(run, straight)
    _, tensors, _ = checkpoint(straight)
    assert {name.split(".")[0] for name in tensors} == {"weights", "ema", "optimiser"}
    assert any(not torch.equal(early[name], tensors[name]) for name in early)
    assert lasting(run) == lasting(straight)
    assert summary(run) == summary(straight)
    assert lora(run) == lora(straight)


def test_a_run_killed_before_its_first_epoch_starts_again(straight, models, prompts, tmp_path):
    """Only config.json and a torn metrics.csv are there: no checkpoint at all."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(straight / "config.json", run)
    (run / "metrics.csv").write_bytes((straight / "metrics.csv").read_bytes()[:-5])
    assert resume(run) == 0
    assert_same_checkpoint(run, straight)
    assert lasting(run) == lasting(straight)


def test_a_finished_run_resumed_stays_as_it_is(straight, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    assert resume(run) == 0
    assert "has already run 3 epochs; raise --epochs" in capsys.readouterr().out
    assert_same_checkpoint(run, straight)
    assert lasting(run) == lasting(straight) and summary(run) == summary(straight)


def test_a_full_disk_leaves_the_old_checkpoint_and_the_run_goes_on(straight, run, capsys):
    """A limit on file size stands in for the full disk: the writes themselves fail."""
    old, limits = checkpoint(run), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        assert resume(run, epochs=3) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    errors = [x for x in capsys.readouterr().err.splitlines() if "error:" in x]
    assert len(errors) == 1 and errors[0].startswith("error: cannot save")
    assert "step-000001 is intact" in errors[0] and "--resume" in errors[0]
    assert checkpoint(run)[0] == old[0] == 1
    assert all(torch.equal(checkpoint(run)[1][name], old[1][name]) for name in old[1])
    assert resume(run, epochs=3) == 0
    assert_same_checkpoint(run, straight)
    assert lasting(run) == lasting(straight)


def test_a_full_disk_leaves_the_old_lora(run, monkeypatch, capsys):
    from safetensors import SafetensorError

    import diffusion.lora.save

    before = lora(run)

    def refuse(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(diffusion.lora.save, "_write", refuse)
        assert resume(run, epochs=2) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if "error:" in x]
    assert len(errors) == 1 and "No space left on device" in errors[0]
    assert lora(run) == before and list(run.glob(".weights-*")) == []


# ------------------------------------------------------------------------ in a process of its own


def spawn(log: Path, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(HELPERS)}
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        environment.pop(name, None)  # set by runs in this process; a user's shell has none
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "genpol.cli", "finetune", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def wait_for(condition, ended, log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert not ended(), log.read_text()
        assert time.monotonic() < deadline, f"nothing in {seconds} s: {log.read_text()}"
        time.sleep(0.02)


def newest(run: Path) -> int:
    """The step of the newest checkpoint; -1 without any."""
    names = [path.name for path in (run / "checkpoints").glob("step-??????")]
    return max((int(name.removeprefix("step-")) for name in names), default=-1)


def test_sigterm_saves_and_leaves_with_143(straight, run, tmp_path):
    log = tmp_path / "log"
    process = forked(lambda: resume(run, epochs=100_000), log, log)
    try:
        wait_for(lambda: newest(run) >= 2, lambda: process.exitcode is not None, log)
        process.terminate()
        process.join(120)
        assert process.exitcode == 143, log.read_text()
    finally:
        process.kill()
    said = log.read_text().replace("\r", "\n").splitlines()
    said = [x for x in said if x.strip() and "epoch" not in x]  # the bar, and "stopped after epoch"
    assert "prompts are longer than" in said.pop(0)
    assert said == ["stopping after this step; once more stops at once"]

    reached = checkpoint(run)[0]
    assert resume(run, epochs=reached + 1) == 0
    other = tmp_path / "other"
    shutil.copytree(straight, other)
    assert resume(other, epochs=reached + 1) == 0
    assert_same_checkpoint(run, other)
    assert lora(run) == lora(other)


@pytest.mark.slow
def test_twenty_kills_change_nothing(models, prompts, tmp_path):
    """SIGKILL at random moments: most while epochs run, some while the process starts."""
    run, log, moments = tmp_path / "run", tmp_path / "log", random.Random(0)
    options = smooth(models, prompts)
    first = words(**(SMALL | options | {"output": run, "epochs": 1}))
    for number in range(20):
        started = (run / "config.json").exists()
        # No run ends by itself: --epochs is out of reach until the last one.
        arguments = ["--resume", str(run), "--epochs", "100000"] if started else first
        goal = newest(run) + moments.randrange(4)
        process = spawn(log, *arguments)

        def reached_goal(started=started, goal=goal):
            return (
                newest(run) >= goal and b"epoch" in log.read_bytes()
                if started
                else (run / "config.json").exists()
            )

        try:
            if number % 5 == 4:  # at start-up, or soon after
                time.sleep(moments.uniform(0, 8))
            else:
                wait_for(reached_goal, lambda p=process: p.poll() is not None, log)
                # The first sitting has one epoch only: strike before it is over.
                time.sleep(moments.uniform(0, 0.5 if started else 0.1))
        finally:
            process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL, log.read_text()

    reached = checkpoint(run)[0]
    assert reached >= 15, "the kills came too early to show anything"
    assert resume(run, epochs=reached + 2) == 0
    straight = tmp_path / "straight"
    assert finetune(output=straight, epochs=reached + 2, **options) == 0
    assert_same_checkpoint(run, straight)
    assert lasting(run) == lasting(straight)
    assert lora(run) == lora(straight)
    for pattern in (".weights-*", "checkpoints/.*"):  # nothing half-written is left
        assert list(run.glob(pattern)) == []
