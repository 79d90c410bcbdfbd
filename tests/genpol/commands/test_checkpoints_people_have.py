"""`finetune` and `generate` on the checkpoints people have: what they say, and what they record."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import single_files
import torch
from diffusers import EDMEulerScheduler, PNDMScheduler
from small_runs import error_line, finetune, resume, words
from tiny_models import tiny_sd

from genpol.cli import main

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SWAP = "PNDMScheduler -> DDIMScheduler"


def saved(folder: Path, scheduler) -> Path:
    pipe = tiny_sd()
    pipe.scheduler = scheduler
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pndm(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pndm") / "model"
    return saved(folder, PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1))


def generate(**options) -> int:
    small = {"num_inference_steps": 2, "guidance_scale": 1.0}
    return main(["generate", *words(**(small | options))])


def scheduler_column(folder: Path) -> set[str]:
    with open(folder / "images.csv", newline="", encoding="utf-8") as file:
        return {row["scheduler"] for row in csv.DictReader(file)}


def test_a_replaced_scheduler_is_printed_once_and_recorded(pndm, prompts, tmp_path, capsys):
    run = tmp_path / "run"
    assert finetune(model=pndm, prompts=prompts, output=run, epochs=1) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if "PNDMScheduler" in line]
    assert len(printed) == 1 and "is replaced by DDIMScheduler" in printed[0]
    assert json.loads((run / "config.json").read_text())["scheduler_replaced"] == SWAP
    assert resume(run, epochs=2) == 0


def test_a_scheduler_that_is_kept_is_not_recorded_as_replaced(models, prompts, tmp_path, capsys):
    run = tmp_path / "run"
    assert finetune(model=models["sd"], prompts=prompts, output=run, epochs=1) == 0
    assert "replaced" not in capsys.readouterr().out
    assert "scheduler_replaced" not in json.loads((run / "config.json").read_text())


def test_generate_records_the_scheduler_of_every_image(pndm, models, prompts, tmp_path, capsys):
    few = {"prompts": prompts, "num_prompts": 2}
    assert generate(model=pndm, output=tmp_path / "a", **few) == 0
    assert "is replaced by DDIMScheduler" in capsys.readouterr().out
    assert scheduler_column(tmp_path / "a") == {SWAP}
    assert generate(model=models["sd"], output=tmp_path / "b", **few) == 0
    assert scheduler_column(tmp_path / "b") == {"DDIMScheduler"}


@pytest.mark.parametrize("command", [finetune, generate], ids=["finetune", "generate"])
def test_another_noise_schedule_is_one_line(command, prompts, tmp_path, capsys):
    model = saved(tmp_path / "edm", EDMEulerScheduler())
    assert command(model=model, prompts=prompts, output=tmp_path / "out") == 2
    assert "EDM" in error_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [finetune, generate], ids=["finetune", "generate"])
def test_a_variant_is_named_and_read(command, prompts, tmp_path, capsys):
    tiny_sd().to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    options = {"model": tmp_path / "half", "prompts": prompts, "output": tmp_path / "out"}
    assert command(**options) == 2
    assert "pass --variant fp16" in error_line(capsys.readouterr().err)
    more = {"epochs": 1} if command is finetune else {"num_prompts": 1}
    assert command(**options, variant="fp16", **more) == 0


@pytest.mark.parametrize("command", [finetune, generate], ids=["finetune", "generate"])
def test_a_single_file_is_read(command, models, prompts, tmp_path, capsys):
    tensors = single_files.whole("sd", single_files.pipeline("sd", 1))
    file = single_files.write(tmp_path / "all.safetensors", tensors)
    more = {"epochs": 1} if command is finetune else {"num_prompts": 1}
    options = {"model": file, "model_config": models["sd"], "prompts": prompts}
    assert command(**options, output=tmp_path / "out", **more) == 0
    line = "all.safetensors: text_encoder, unet, vae from the file; scheduler, tokenizer from "
    assert line in capsys.readouterr().out
    if command is finetune:
        assert resume(tmp_path / "out", epochs=2) == 0
