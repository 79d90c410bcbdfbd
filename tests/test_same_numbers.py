"""Three short runs give the numbers that they gave before; the comparison sees what differs."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from scripts.same_numbers import COMMANDS, ROOT, differences, golden, numbers, run

# `scripts.same_numbers` fixes the instructions of the libraries, and repeated runs on one machine
# are then equal to the last bit. This much is left to what may still depend on the processor.
# It cannot be wide: see INSTRUCTIONS there.
RELATIVE, ABSOLUTE = 1e-6, 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_numbers_are_those_of_before(command, tmp_path):
    expected, elsewhere = golden()
    if elsewhere:
        pytest.skip("; ".join(elsewhere) + ": compare with an earlier checkout, --against")
    found = run(ROOT, command, tmp_path / command)
    assert len(expected[command]) > 100
    tolerance = {"relative": RELATIVE, "absolute": ABSOLUTE}
    assert differences(expected[command], found, **tolerance, more=True) == []


def leave_run(folder, loss="0.25", weight=1.0, success=3, seconds="7"):
    folder.mkdir()
    (folder / "metrics.csv").write_text(f"step,loss,time/seconds\n4,{loss},{seconds}\n8,,9\n")
    (folder / "summary.json").write_text(json.dumps({"wins": success, "time/seconds": 9.0}))
    tensors = {"w": torch.full((2, 2), weight)}
    save_file(tensors, folder / "policy.safetensors")
    (folder / "checkpoints").mkdir()
    save_file({"w": torch.rand(3)}, folder / "checkpoints" / "state.safetensors")
    return numbers(folder)


def test_a_run_is_read_without_what_the_clock_says(tmp_path):
    found = leave_run(tmp_path / "run")
    hashed = found.pop("policy.safetensors/sha256")
    assert len(hashed) == 64
    assert found == {
        "metrics.csv/0/step": 4,
        "metrics.csv/0/loss": 0.25,
        "metrics.csv/1/step": 8,
        "policy.safetensors/rms/w": 1.0,
        "summary.json/wins": 3,
    }


def test_numbers_that_a_later_version_adds_are_no_difference_and_those_it_drops_are():
    old, new = {"a": 1.0}, {"a": 1.0, "b": 2.0}
    assert differences(old, new, more=True) == []
    assert differences(old, new) == ["b: nothing and 2.0"]
    assert differences(new, old, more=True) == ["b: 2.0 and nothing"]


def test_every_difference_has_its_line(tmp_path):
    one = leave_run(tmp_path / "one")
    assert differences(one, leave_run(tmp_path / "two", seconds="8")) == []
    assert differences(one, leave_run(tmp_path / "loss", loss="0.25000000000000006")) == [
        "metrics.csv/0/loss: 0.25 and 0.25000000000000006"
    ]
    assert differences(one, leave_run(tmp_path / "gone", loss="")) == [
        "metrics.csv/0/loss: 0.25 and nothing"
    ]
    assert differences(leave_run(tmp_path / "nan", loss="nan"), one) == [
        "metrics.csv/0/loss: nan and 0.25"
    ]
    lines = differences(one, leave_run(tmp_path / "weight", weight=-1.0))  # the same size
    assert [line.split(": ")[0] for line in lines] == ["policy.safetensors/sha256"]


def test_tolerance_is_for_floats_alone(tmp_path):
    one, some = leave_run(tmp_path / "one"), {"relative": 1e-3, "absolute": 1e-3}
    near = leave_run(tmp_path / "near", loss="0.2501", weight=1.0001)
    assert differences(one, near, **some) == []
    assert len(differences(one, near)) == 3
    assert len(differences(one, leave_run(tmp_path / "far", loss="0.253"), **some)) == 1
    assert differences(one, leave_run(tmp_path / "count", success=4), **some) == [
        "summary.json/wins: 3 and 4"
    ]
