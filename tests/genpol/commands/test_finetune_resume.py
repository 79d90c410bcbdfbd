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
        "ema": 0.9,
    }


@pytest.fixture(scope="module")
def straight(models, prompts, tmp_path_factory) -> Path:
    """Four epochs without a break."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert finetune(output=folder, epochs=4, **smooth(models, prompts)) == 0
    return folder


def summary(folder: Path) -> dict[str, float]:
    numbers = json.loads((folder / "summary.json").read_text())
    return {k: v for k, v in numbers.items() if not k.startswith("time/")}


def lora(folder: Path) -> bytes:
    return (folder / "lora" / "pytorch_lora_weights.safetensors").read_bytes()


def test_two_epochs_and_two_more_are_four(straight, models, prompts, tmp_path):
    run = tmp_path / "run"
    assert finetune(output=run, epochs=2, **smooth(models, prompts)) == 0
    halfway = checkpoint(run)[1]
    assert resume(run, epochs=4) == 0
    assert_same_checkpoint(run, straight)
    _, tensors, _ = checkpoint(straight)
    assert {name.split(".")[0] for name in tensors} == {"weights", "ema", "optimiser"}
    assert any(not torch.equal(halfway[name], tensors[name]) for name in halfway)
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
    assert "has already run 4 epochs; raise --epochs" in capsys.readouterr().out
    assert_same_checkpoint(run, straight)
    assert lasting(run) == lasting(straight) and summary(run) == summary(straight)


def test_a_full_disk_leaves_the_old_checkpoint_and_the_run_goes_on(
    straight, models, prompts, tmp_path, capsys
):
    """A limit on file size stands in for the full disk: the writes themselves fail."""
    run = tmp_path / "run"
    assert finetune(output=run, epochs=2, **smooth(models, prompts)) == 0
    capsys.readouterr()
    old, limits = checkpoint(run), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        assert resume(run, epochs=4) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    errors = [x for x in capsys.readouterr().err.splitlines() if "error:" in x]
    assert len(errors) == 1 and errors[0].startswith("error: cannot save")
    assert "step-000002 is intact" in errors[0] and "--resume" in errors[0]
    assert checkpoint(run)[0] == old[0] == 2
    assert all(torch.equal(checkpoint(run)[1][name], old[1][name]) for name in old[1])
    assert resume(run, epochs=4) == 0
    assert_same_checkpoint(run, straight)
    assert lasting(run) == lasting(straight)


def test_a_full_disk_leaves_the_old_lora(models, prompts, tmp_path, monkeypatch, capsys):
    from safetensors import SafetensorError

    import diffusion.lora.save

    run = tmp_path / "run"
    assert finetune(output=run, epochs=2, **smooth(models, prompts)) == 0
    capsys.readouterr()
    before = lora(run)

    def refuse(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(diffusion.lora.save, "_write", refuse)
        assert resume(run, epochs=4) == 2
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


def wait_for(condition, process: subprocess.Popen, log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"nothing in {seconds} s: {log.read_text()}"
        time.sleep(0.02)


def newest(run: Path) -> int:
    """The step of the newest checkpoint; -1 without any."""
    names = [path.name for path in (run / "checkpoints").glob("step-??????")]
    return max((int(name.removeprefix("step-")) for name in names), default=-1)


def test_sigterm_saves_and_leaves_with_143(straight, models, prompts, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    assert finetune(output=run, epochs=1, **smooth(models, prompts)) == 0
    process = spawn(log, "--resume", str(run), "--epochs", "100000")
    try:
        wait_for(lambda: newest(run) >= 3, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 143, log.read_text()
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
    options = smooth(models, prompts) | {"eval_every": 1}
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
                wait_for(reached_goal, process, log)
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
