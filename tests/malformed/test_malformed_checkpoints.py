"""Run folders whose checkpoints are torn, changed or made up: a warning or one line, never worse.

A damaged file is noticed by its sha256, and the run goes on from the checkpoint before, bit for
bit. What somebody has changed and signed again, or what is of a version without sums, is refused
in one line if it does not fit. Nothing that was good is touched by a refusal.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import small_runs
import torch
import toy_reach
import training_runs
from malformed import LONGEST_LINE, byte_variants, json_variants, run_command

from genpol.runs import checkpoints
from scripts.make_old_runs import OUTPUT as OLD_RUNS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_page", "quick_writes")]

TRAIN = training_runs.TINY | {
    "steps": 14,
    "checkpoint_every": 7,
    "eval_every": 14,
    "eval_episodes": 1,
    "pretrain_steps": 1,
    "replay_capacity": 40,
    "log_every": 7,
}
MORE_STEPS, MORE_EPOCHS = 16, 3


@pytest.fixture
def no_page(monkeypatch):
    monkeypatch.setattr("genpol.training.report.write_page", lambda folder: folder)


@pytest.fixture
def quick_writes(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """One of each command, with two checkpoints, and a training from before sums."""
    from tiny_models import tiny_sd

    folder = tmp_path_factory.mktemp("runs")
    demos = toy_reach.write_demonstrations(folder / "demos.hdf5")
    model = training_runs.MODELLED | {"model_updates": 2, "cache_age": 4}
    assert training_runs.train(**(TRAIN | model), data=demos, output=folder / "train") == 0
    tiny_sd().save_pretrained(folder / "model")
    (folder / "prompts.txt").write_text("\n".join(f"animal {i}" for i in range(12)))
    small = small_runs.SMALL | {"eval_every": 10, "inner_steps": 1, "ema": 0.9}
    assert (
        small_runs.finetune(
            **(small | {"model": folder / "model", "prompts": folder / "prompts.txt"}),
            output=folder / "finetune",
        )
        == 0
    )
    return {"train": folder / "train", "finetune": folder / "finetune"}


@pytest.fixture(scope="module")
def expected(runs, tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """What each run comes to when nothing is wrong."""
    found = {}
    for name, run in runs.items():
        copy = tmp_path_factory.mktemp("expected") / name
        shutil.copytree(run, copy)
        code, said = run_command(words(copy))
        assert code == 0, said
        found[name] = reached(copy)
    return found


def words(run: Path) -> list[str]:
    if run.name == "finetune":
        return ["finetune", "--resume", str(run), "--epochs", str(MORE_EPOCHS)]
    return ["train", "--resume", str(run), "--steps", str(MORE_STEPS)]


def reached(run: Path) -> dict[str, torch.Tensor]:
    found = checkpoints.latest(run / "checkpoints")
    assert found is not None
    return found[1]


def good_files(run: Path) -> dict[str, bytes]:
    """What no refusal may touch."""
    kept = [*(run / "checkpoints").rglob("*"), *run.glob("*/*.safetensors"), run / "summary.json"]
    return {str(path.relative_to(run)): path.read_bytes() for path in kept if path.is_file()}


def goes_on_or_is_refused(run: Path) -> tuple[int, str]:
    """Resume it; what holds of every way that may end."""
    before = good_files(run)
    code, said = run_command(words(run))
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.strip()]
    assert "Traceback" not in said
    assert all(len(line) <= LONGEST_LINE for line in lines if "warning:" in line), said
    errors = [line for line in lines if line.startswith("error:")]
    if code == 0:
        assert not errors and checkpoints.latest(run / "checkpoints") is not None
    else:
        assert code == 2 and len(errors) == 1, said[-2000:]
        assert len(errors[0]) <= LONGEST_LINE, errors[0][:1000]
        assert good_files(run) == before
    return code, said


def copies(run: Path, folder: Path) -> Iterator[Path]:
    """The run, as it was, again and again."""
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run, folder / run.name)
        yield folder / run.name


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def own_segment(run: Path) -> Path:
    """One that only the newest checkpoint lists."""
    of = {path: checkpoints.read_document(path)[0] for path in (run / "checkpoints").glob("step-*")}
    listed = [{entry.file for entry in of[path].segments.files} for path in sorted(of)]
    return run / "checkpoints" / "segments" / min(listed[-1] - listed[0])


FILES: dict[str, Callable[[Path], Path]] = {
    "state.json": lambda run: newest(run) / "state.json",
    "state.safetensors": lambda run: newest(run) / "state.safetensors",
    "segment": own_segment,
}


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("train", "state.json", 16),
        ("train", "state.safetensors", 16),
        ("train", "segment", 16),
        ("finetune", "state.json", 8),
        ("finetune", "state.safetensors", 8),
    ],
)
def test_whatever_changed_of_the_newest_the_one_before_is_taken(
    name, file, count, runs, expected, tmp_path
):
    folders = copies(runs[name], tmp_path)
    data = FILES[file](runs[name]).read_bytes()
    for spoilt in [None, *byte_variants(data, 1, count)]:
        if spoilt == data:
            continue
        run = next(folders)
        path = FILES[file](run)
        if spoilt is None:
            path.unlink()
        else:
            path.write_bytes(spoilt)
        code, said = goes_on_or_is_refused(run)
        assert code == 0 and said.count("warning: cannot read checkpoint") == 1, said
        ends = reached(run)
        assert ends.keys() == expected[name].keys()
        assert [n for n in ends if not same_bits(ends[n], expected[name][n])] == []


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("name", ["train", "finetune"])
def test_what_is_damaged_everywhere_is_refused(name, runs, tmp_path):
    folders, draw = copies(runs[name], tmp_path), random.Random(2)
    for file in ("state.json", "state.safetensors", "segments"):
        if file == "segments" and name == "finetune":
            continue
        run = next(folders)
        for path in (run / "checkpoints").rglob("*"):
            if file in (path.name, path.parent.name) and path.is_file():
                path.write_bytes(path.read_bytes()[: draw.randrange(200)])
        code, said = goes_on_or_is_refused(run)
        assert code == 2 and "none of the 2 checkpoints" in said


def signed_again(text: str) -> str:
    """As somebody writes it who knows how sums are made."""
    try:
        document = json.loads(text)
        document["sha256"] = checkpoints._digest(document)
        return json.dumps(document)
    except (AttributeError, ValueError, TypeError, RecursionError):
        return text


@pytest.mark.parametrize(("name", "count"), [("train", 60), ("finetune", 30)])
def test_what_was_changed_and_signed_again(name, count, runs, tmp_path):
    folders = copies(runs[name], tmp_path)
    document = json.loads((newest(runs[name]) / "state.json").read_text())
    refused = 0
    for text in json_variants(document, 3, count):
        run = next(folders)
        (newest(run) / "state.json").write_text(signed_again(text))
        refused += goes_on_or_is_refused(run)[0] == 2
    assert refused > count / 10


@pytest.mark.parametrize("name", ["train-expo-vagram", "train-expo-student", "train-sac"])
def test_checkpoints_without_sums(name, tmp_path, monkeypatch):
    """Of "genpol run 1", of which there is one only: it goes on, or is refused."""
    run = tmp_path / "runs" / name
    document = json.loads((newest(OLD_RUNS / name) / "state.json").read_text())
    tensors = (newest(OLD_RUNS / name) / "state.safetensors").read_bytes()
    kinds = {
        "state.json": [text.encode() for text in json_variants(document, 4, 24)],
        "state.safetensors": list(byte_variants(tensors, 5, 8)),
    }
    for file, variants in kinds.items():
        for spoilt in variants:
            shutil.rmtree(tmp_path / "runs", ignore_errors=True)
            shutil.copytree(OLD_RUNS / name, run)
            shutil.copy(OLD_RUNS / "demos.hdf5", tmp_path / "runs")
            monkeypatch.chdir(tmp_path / "runs")
            (newest(run) / file).write_bytes(spoilt)
            code, said = run_command(["train", "--resume", name, "--steps", "20"])
            assert code in (0, 2) and said.count("error:") == (code == 2), said[-2000:]
            assert max(len(line) for line in said.splitlines()) <= LONGEST_LINE


@pytest.mark.parametrize("name", ["train", "finetune"])
def test_a_configuration_that_was_changed(name, runs, tmp_path):
    folders = copies(runs[name], tmp_path)
    document = json.loads((runs[name] / "config.json").read_text())
    for text in json_variants(document, 6, 20):
        run = next(folders)
        (run / "config.json").write_text(text)
        before = good_files(run)
        code, said = run_command(words(run))
        errors = [line for line in said.splitlines() if line.startswith("error:")]
        assert code in (0, 2) and len(errors) == (code == 2), said[-2000:]
        assert code == 0 or good_files(run) == before
