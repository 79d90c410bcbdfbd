"""`genpol finetune` and `generate` on a flow pipeline: sizes, samplers, schedules, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from small_runs import error_line, finetune, resume, rows, words

from genpol.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from tiny_families import tiny

    folder = tmp_path_factory.mktemp("flow") / "flux"
    tiny("flux").save_pretrained(folder)
    return folder


def test_a_schedule_and_a_training_size_are_stored_and_resumed(model, prompts, tmp_path):
    options = {"model": model, "prompts": prompts, "train_resolution": 16, "guidance_scale": 1}
    options |= {"lr_schedule": "linear", "lr_warmup_steps": 1, "max_sequence_length": 16}
    options |= {"height": 32, "width": 32}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert finetune(**options, output=whole) == 0
    assert finetune(**options, output=parts, epochs=1) == 0
    assert [float(row["train/learning_rate"]) for row in rows(parts)[1:]] == [0.01]
    assert resume(parts, epochs=2) == 0
    rates = [float(row["train/learning_rate"]) for row in rows(whole)[1:]]
    assert rates == pytest.approx([0.01, 0.01 / 3])  # the last of each epoch's two steps
    assert float(rows(parts)[2]["train/learning_rate"]) == rates[1]
    config = json.loads((parts / "config.json").read_text())
    assert (config["train_resolution"], config["lr_schedule"]) == (16, "linear")
    with Image.open(parts / "samples" / "after" / "00000.png") as picture:
        assert picture.size == (32, 32)


def test_generate_draws_by_each_sampler(model, prompts, tmp_path, capsys):
    common = {"model": model, "prompts": prompts, "num_prompts": 1, "num_inference_steps": 3}
    common |= {"max_sequence_length": 16, "width": 32, "height": 16}
    drawn = set()
    for sampler in ("ode", "cps"):
        out = tmp_path / sampler
        assert main(["generate", *words(**common, sampler=sampler, output=out)]) == 0
        with Image.open(out / "00000.png") as picture:
            assert picture.size == (32, 16)
            drawn.add(picture.tobytes())
    assert len(drawn) == 2
    capsys.readouterr()
    common |= {"height": 18, "output": tmp_path / "x"}
    assert main(["generate", *words(**common)]) == 2
    assert "--height 18 is no multiple of 4" in error_line(capsys.readouterr().err)
