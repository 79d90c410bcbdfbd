"""Checkpoints are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from genpol.runs import checkpoints
from offline.errors import InputError

STATE = {"epoch": 3, "rng": [1, 2**63], "beta": 0.1 + 0.2}


def tensors(value, size=4):
    return {"lora.a": torch.full((size,), float(value)), "rng": torch.arange(8, dtype=torch.uint8)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    saved = {
        "f32": torch.randn(3, 5, generator=generator),
        "bf16": torch.randn(7, generator=generator).bfloat16(),
        "i64": torch.tensor(2**60),
        "transposed": torch.randn(2, 3, generator=generator).T,
        "graph": torch.randn(2, generator=generator).requires_grad_(),
    }
    folder = checkpoints.save(tmp_path / "c", 10, saved, STATE, keep=2)
    assert folder == tmp_path / "c" / "step-000010"
    assert names(folder) == ["state.json", "state.safetensors"]
    step, loaded, state = checkpoints.latest(tmp_path / "c")
    assert step == 10 and state == STATE
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoints.latest(tmp_path / "absent") is None
    assert checkpoints.latest(tmp_path) is None


def test_the_newest_keep_stay(tmp_path):
    for step in (8, 9, 10, 11):
        checkpoints.save(tmp_path, step, tensors(step), STATE, keep=2)
    assert names(tmp_path) == ["step-000010", "step-000011"]
    checkpoints.save(tmp_path, 1_000_000, tensors(0), STATE, keep=1)
    assert names(tmp_path) == ["step-1000000"]
    with pytest.raises(ValueError, match="keep=0"):
        checkpoints.save(tmp_path, 12, tensors(12), STATE, keep=0)


def test_the_old_one_goes_only_after_the_new_one_is_in_place(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, 1, tensors(1), STATE, keep=1)
    seen = []

    def spy(*arguments):
        seen.append(names(tmp_path))
        return real(*arguments)

    real = checkpoints._write
    monkeypatch.setattr(checkpoints, "_write", spy)
    checkpoints.save(tmp_path, 2, tensors(2), STATE, keep=1)
    assert "step-000001" in seen[0]
    assert names(tmp_path) == ["step-000002"]


def test_the_same_step_is_replaced_and_never_missing(tmp_path, monkeypatch):
    """At every rename of the replacement, some checkpoint of the step can be loaded."""
    checkpoints.save(tmp_path, 1, tensors(1), STATE, keep=1)
    rename, steps = os.rename, []

    def watched(source, target):
        rename(source, target)
        steps.append(checkpoints.latest(tmp_path)[0])

    monkeypatch.setattr(os, "rename", watched)
    checkpoints.save(tmp_path, 1, tensors(2), STATE, keep=1)
    assert steps == [1, 1, 1]
    assert names(tmp_path) == ["step-000001"]
    assert torch.equal(checkpoints.latest(tmp_path)[1]["lora.a"], tensors(2)["lora.a"])


@pytest.mark.parametrize("left", ["step-000001", "step-000001.old"])
def test_killed_between_the_renames(tmp_path, left):
    """Both names, or only the one set aside, may be left by a kill; saving again tidies up."""
    checkpoints.save(tmp_path, 1, tensors(1), STATE, keep=1)
    if left == "step-000001":
        (tmp_path / "step-000001.old").mkdir()
        (tmp_path / "step-000001.old" / "state.json").write_text("{}")
    else:
        os.rename(tmp_path / "step-000001", tmp_path / left)
    assert checkpoints.latest(tmp_path)[0] == 1
    checkpoints.save(tmp_path, 1, tensors(2), STATE, keep=1)
    assert names(tmp_path) == ["step-000001"]


def test_half_written_folders_are_ignored_then_removed(tmp_path):
    checkpoints.save(tmp_path, 1, tensors(1), STATE, keep=2)
    (tmp_path / ".step-000002.123").mkdir()
    (tmp_path / ".step-000002.123" / "state.json").write_text("{}")
    assert checkpoints.latest(tmp_path)[0] == 1
    checkpoints.save(tmp_path, 3, tensors(3), STATE, keep=2)
    assert names(tmp_path) == ["step-000001", "step-000003"]


def damage(path):
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("file", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("how", [damage, os.remove])
def test_an_unreadable_newest_falls_back_with_one_line(tmp_path, capsys, file, how):
    for step in (1, 2):
        checkpoints.save(tmp_path, step, tensors(step), STATE, keep=2)
    how(tmp_path / "step-000002" / file)
    step, loaded, _ = checkpoints.latest(tmp_path)
    assert step == 1 and loaded["lora.a"][0] == 1.0
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert err.startswith(f"warning: cannot read checkpoint {tmp_path / 'step-000002'}")


def test_after_a_fall_back_the_new_checkpoint_is_the_one_that_stays(tmp_path):
    """A damaged later step must not push out what the resumed run saves."""
    for step in (1, 5):
        checkpoints.save(tmp_path, step, tensors(step), STATE, keep=2)
    damage(tmp_path / "step-000005" / "state.json")
    checkpoints.save(tmp_path, 2, tensors(2), STATE, keep=2)
    assert names(tmp_path) == ["step-000001", "step-000002"]


def test_none_readable_is_an_error(tmp_path):
    checkpoints.save(tmp_path, 1, tensors(1), STATE, keep=1)
    damage(tmp_path / "step-000001" / "state.json")
    with pytest.raises(InputError, match="none of the 1 checkpoints"):
        checkpoints.latest(tmp_path)


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from genpol.runs import checkpoints
from offline.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
big_tensor, big_state = {"w": torch.zeros(10_000)}, {"x": "y" * 10_000}
for tensors, state in [(big_tensor, {}), ({}, big_state)]:
    try:
        checkpoints.save(Path(sys.argv[1]), 2, tensors, state, keep=1)
    except InputError as error:
        print(error)
"""


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path):
    """For the tensors' file as for the state's: the system refuses to write beyond 4 kB."""
    folder = tmp_path / "checkpoints"
    checkpoints.save(folder, 1, tensors(1), STATE, keep=1)
    command = [sys.executable, "-c", FULL_DISK, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line == (
            f"cannot save {folder / 'step-000002'}: File too large. {folder / 'step-000001'} "
            "is intact: free some space, then continue with --resume"
        )
    assert names(folder) == ["step-000001"]
    assert checkpoints.latest(folder)[0] == 1


def test_the_first_checkpoint_on_a_full_disk(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(checkpoints, "_write", refuse)
    with pytest.raises(InputError, match="No space left on device. No earlier checkpoint exists"):
        checkpoints.save(tmp_path, 1, tensors(1), STATE, keep=1)
    assert names(tmp_path) == []
