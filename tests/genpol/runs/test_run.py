"""The run folder: who may write in it, what it records, pictures."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from genpol.runs.run import Run, read_config
from offline.errors import InputError

CONFIG = {"reward": "jpeg_compressibility", "epochs": 10, "beta": 3e-5, "seed": None}


def start(folder, *, wandb="disabled", resume=False, config=CONFIG):
    return Run(folder, config, command="finetune", wandb=wandb, resume=resume)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Claiming a folder


def test_config_records_options_versions_and_commit(tmp_path):
    import torch

    with start(tmp_path / "a" / "x", config=CONFIG | {"output": tmp_path}) as run:
        run.log(1, {"loss": 1.0})
    document = json.loads((tmp_path / "a" / "x" / "config.json").read_text())
    assert CONFIG.items() <= document.items()
    assert document["output"] == str(tmp_path)
    assert document["command"] == "finetune" and document["command_line"]
    assert document["versions"]["torch"] == torch.__version__
    assert set(document["versions"]) == {
        *("python", "genpol", "torch", "diffusers", "transformers", "peft")
    }
    assert document["git"] is None or len(document["git"]) == 40


@pytest.mark.parametrize("finished", [False, True])
def test_a_folder_with_a_run_is_refused(tmp_path, finished):
    with start(tmp_path) as run:
        run.log(1, {"loss": 1.0})
        if finished:
            run.summary({"loss": 1.0})
    before = (tmp_path / "metrics.csv").read_bytes()
    kind = "a finished" if finished else "an unfinished"
    with pytest.raises(InputError, match=f"{kind} run: pass another --output or --resume"):
        start(tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_folder_without_a_run_is_accepted(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with start(tmp_path) as run:
        run.log(1, {"loss": 1.0})
    assert names(tmp_path) == ["config.json", "metrics.csv", "notes.txt"]


def test_output_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="cannot make the output folder.*another --output"):
        start(tmp_path / "x")


def test_a_run_that_failed_at_once_gives_the_folder_back(tmp_path):
    with pytest.raises(ZeroDivisionError), start(tmp_path):
        raise ZeroDivisionError
    assert names(tmp_path) == []
    with pytest.raises(ZeroDivisionError), start(tmp_path) as run:
        run.log(1, {"loss": 1.0})
        raise ZeroDivisionError
    assert names(tmp_path) == ["config.json", "metrics.csv"]


def test_a_resumed_run_that_failed_at_once_keeps_its_folder(tmp_path):
    with start(tmp_path):  # killed before its first row: nothing but config.json and a header
        pass
    with pytest.raises(ZeroDivisionError), start(tmp_path, resume=True):
        raise ZeroDivisionError
    assert names(tmp_path) == ["config.json", "metrics.csv"]


def test_resume_keeps_config_and_drops_rows_after_the_checkpoint(tmp_path):
    with start(tmp_path) as run:
        for step in (1, 2, 3):
            run.log(step, {"loss": step / 10})
    before = (tmp_path / "config.json").read_bytes()
    with start(tmp_path, resume=True, config={"epochs": 99}) as run:
        run.truncate(1)
        run.log(2, {"loss": 0.2})
    assert (tmp_path / "config.json").read_bytes() == before
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,0.1\n2,0.2\n"


def test_resume_of_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run to resume"):
        start(tmp_path / "x", resume=True)
    assert not (tmp_path / "x").exists()


def test_read_config_returns_the_options(tmp_path):
    with start(tmp_path) as run:
        run.log(1, {"loss": 1.0})
    assert read_config(tmp_path, "finetune") == CONFIG
    with pytest.raises(InputError, match="a run of `genpol finetune`, not of `genpol train`"):
        read_config(tmp_path, "train")
    with pytest.raises(InputError, match="holds no run"):
        read_config(tmp_path / "x", "finetune")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="not a run's configuration"):
        read_config(tmp_path, "finetune")


def test_a_run_in_another_format_is_refused_and_one_without_is_the_first(tmp_path):
    with start(tmp_path) as run:
        run.log(1, {"loss": 1.0})
    path = tmp_path / "config.json"
    document = json.loads(path.read_text())
    assert document.pop("format") == "genpol run 2"
    path.write_text(json.dumps(document))
    assert read_config(tmp_path, "finetune") == CONFIG
    document["versions"]["genpol"] = "9.8"
    path.write_text(json.dumps(document | {"format": "genpol run 7"}))
    with pytest.raises(InputError, match='"genpol run 7", written by genpol 9.8; .*"genpol run 2"'):
        read_config(tmp_path, "finetune")
    path.write_text(json.dumps({"command": "finetune", "format": 7}))
    with pytest.raises(InputError, match='"7", written by genpol of another version'):
        read_config(tmp_path, "finetune")


# What it writes


def test_summary_is_flat_numbers(tmp_path):
    with start(tmp_path) as run:
        run.summary({"eval/reward_after": 0.5, "steps": 3, "lost": float("nan")})
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text) == {"eval/reward_after": 0.5, "steps": 3, "lost": None}


def test_pictures_go_to_samples(tmp_path):
    image = Image.new("RGB", (4, 4), (255, 0, 0))
    with start(tmp_path) as run:
        path = run.log_images(10, "eval/held_out", image)
    assert path == tmp_path / "samples" / "eval_held_out-step-000010.png"
    assert Image.open(path).getpixel((0, 0)) == (255, 0, 0)


FULL_DISK = """
import resource, sys
from pathlib import Path
from genpol.runs.run import Run
from offline.errors import InputError
with Run(Path(sys.argv[1]), {}, command="finetune", wandb="disabled") as run:
    run.log(1, {"loss": 1.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        for step in range(2, 100):
            run.log(step, {"loss": 1.0})
    except InputError as error:
        print(error)
"""


def test_a_full_disk_while_logging_is_one_line_and_the_table_still_opens(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert f"cannot write {tmp_path / 'metrics.csv'}" in done.stdout
    with start(tmp_path, resume=True) as run:
        run.log(50, {"loss": 0.5})
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,loss" and lines[-1] == "50,0.5"
    assert lines[1:-1] == [f"{step},1.0" for step in range(1, len(lines) - 1)]
