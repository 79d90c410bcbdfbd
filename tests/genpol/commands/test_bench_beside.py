"""`genpol bench beside`: what it says of its numbers, and that nothing it starts outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import genpol
from genpol.benchmarks.beside import Child
from genpol.cli import main
from genpol.commands.bench.beside import BenchBeside, add, as_table, results, settings
from offline.errors import InputError

ROOT = Path(genpol.__file__).parents[1]
ECHO = "import sys, time; print('ready', flush=True); sys.stdin.readline(); time.sleep(60)"


def turn(wall: float, cpu: float) -> dict:
    one = {"wall": [wall, wall, 2 * wall], "cpu": cpu}
    return {work: one for work in ("decision", "paced", "expo_step", "epoch")}


def test_ratios_of_hand_made_times():
    found: dict = {}
    for _ in range(2):
        add(found, "idle", turn(1.0, 0.5))
        add(found, "beside", turn(3.0, 0.6))
        add(found, "usual_idle", turn(0.8, 1.5))
        add(found, "usual_beside", turn(80.0, 60.0))
    out = results(found)
    assert out["bench/decision_idle_p50_s"] == 1.0
    assert out["bench/decision_beside_p95_s"] == 6.0  # of both turns together
    assert out["bench/decision_latency_ratio"] == 6.0
    assert out["bench/epoch_cpu_ratio"] == pytest.approx(1.2)
    assert out["bench/usual_epoch_cpu_ratio"] == pytest.approx(40.0)
    assert out["bench/expo_step_idle_ratio"] == pytest.approx(1.25)
    counts = {f"bench/{side}{work}_threads": 1.0 for side in ("", "usual_") for work in
              ("decision", "expo_step", "epoch")}  # fmt: skip
    table = as_table(out | counts)
    assert table.count("decision, one after another, ms") == 2 and "spin" in table
    assert "idle p50 in that of PyTorch as it comes: decision, one after another 1.25" in table
    assert "spin" not in as_table({k: v for k, v in (out | counts).items() if "usual" not in k})


def test_what_the_workers_are_told_is_json():
    told = settings(BenchBeside(utd=3, prompts_per_epoch=2))
    assert json.loads(json.dumps(told))["expo"]["utd"] == 3.0
    assert told["finetune"]["prompts_per_epoch"] == 2 and told["threads"] is None


def alive(number: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_child_ends_with_its_context_whatever_it_does():
    for error in (None, KeyboardInterrupt, RuntimeError):
        try:
            with Child(ECHO) as child:
                assert child.answer() == "ready\n"
                child.tell("sleep\n")
                number = child._process.pid
                if error is not None:
                    raise error
        except (KeyboardInterrupt, RuntimeError):
            pass
        assert child._process.returncode is not None and not alive(number)


def test_a_child_that_fails_is_an_error_of_one_line():
    with Child("raise ValueError('no such thing')") as child:
        with pytest.raises(InputError, match="ended with code 1: ValueError: no such thing"):
            child.answer()


SMALL = (
    "--no-usual --rounds 1 --decisions 5 --paced-decisions 2 --rate 50 --utd 1 "
    "--prompts-per-epoch 1 --busy 1"
).split()


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys):
    assert main(["bench", "beside", *SMALL, "--output", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    for work in ("decision", "paced", "expo_step", "epoch"):
        assert 0 < summary[f"bench/{work}_idle_p50_s"] <= summary[f"bench/{work}_idle_p95_s"]
        assert summary[f"bench/{work}_cpu_ratio"] > 0 < summary[f"bench/{work}_latency_ratio"]
    assert summary["bench/decision_threads"] == 1
    assert "this machine's GFLOP/s" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_running(number, tmp_path):
    """Also when a worker is in the middle of its work."""
    command = [sys.executable, "-m", "genpol", "bench", "beside", *SMALL, "--decisions", "100000"]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "run")], cwd=ROOT, env=os.environ | {"PYTHONPATH": ""}
    )

    def children() -> list[int]:
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return [int(word) for word in listed.split()]

    end = time.monotonic() + 120
    while len(started := children()) < 2 and time.monotonic() < end:  # the worker, the busy one
        time.sleep(0.2)
    assert len(started) == 2
    time.sleep(5)
    process.send_signal(number)
    process.wait(60)
    end = time.monotonic() + 10
    while any(map(alive, started)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(alive, started))
