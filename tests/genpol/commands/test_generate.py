"""`genpol generate` on a random pipeline: files, seeds, best of K, and what it refuses."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import error_line, finetune, words

from diffusion.errors import InputError
from genpol.cli import main

CALL = {"num_inference_steps": 4, "guidance_scale": 3.0, "eta": 1.0}


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("few") / "few.txt"
    path.write_text('a cat\na "big", brown dog\ntwo owls\n')
    return path


def generate(**options) -> int:
    small = {"num_inference_steps": 4, "guidance_scale": 3.0}
    return main(["generate", *words(**(small | options))])


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "images.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=np.int64)


@pytest.fixture(scope="module")
def drawn(models, few, tmp_path_factory) -> Path:
    """Two images of each of three prompts."""
    folder = tmp_path_factory.mktemp("drawn") / "out"
    options = {"model": models["sd"], "prompts": few, "images_per_prompt": 2, "seed": 5}
    assert generate(output=folder, **options) == 0
    return folder


def test_every_image_has_a_row(drawn):
    found = table(drawn)
    columns = ["file", "prompt", "seed", "reward", "reward_mean", "candidates", "scheduler"]
    assert list(found[0]) == columns
    assert [row["file"] for row in found] == [f"{i:05d}.png" for i in range(6)]
    names = {r["file"] for r in found} | {"images.csv", "grid.png"}
    assert {path.name for path in drawn.iterdir()} == names
    assert [row["prompt"] for row in found[::2]] == ["a cat", 'a "big", brown dog', "two owls"]
    assert [row["seed"] for row in found] == ["5", "6", "7", "8", "9", "10"]
    assert {row["candidates"] for row in found} == {"1"} and {r["reward"] for r in found} == {""}
    assert pixels(drawn / "00000.png").shape == (16, 16, 3)


def test_a_seed_reproduces_its_image_in_plain_diffusers(drawn, models):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(models["sd"], safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    row = table(drawn)[3]
    generator = torch.Generator().manual_seed(int(row["seed"]))
    image = pipe(row["prompt"], generator=generator, output_type="np", **CALL).images[0]
    assert np.abs(pixels(drawn / row["file"]) - image * 255).max() <= 1


def test_batch_size_does_not_change_images(drawn, models, few, tmp_path):
    options = {"model": models["sd"], "prompts": few, "images_per_prompt": 2, "seed": 5}
    assert generate(output=tmp_path / "out", batch=2, **options) == 0
    assert table(tmp_path / "out") == table(drawn)
    for row in table(drawn):
        gap = pixels(drawn / row["file"]) - pixels(tmp_path / "out" / row["file"])
        assert np.abs(gap).max() <= 1
    assert (pixels(drawn / "00000.png") != pixels(drawn / "00001.png")).any()


@pytest.mark.parametrize("batch", [64, 4])
def test_best_of_keeps_the_candidate_with_the_highest_reward(batch, models, few, tmp_path):
    from diffusion.loading import load_pipeline
    from genpol.commands.generate.command import draw_images

    options = {"model": models["sd"], "prompts": few, "best_of": 3, "seed": 20, "batch": batch}
    reward = "tiny_rewards:brightness"
    assert generate(output=tmp_path / "out", reward=reward, **options) == 0
    pipe, chosen = load_pipeline(str(models["sd"])), []
    for i, row in enumerate(table(tmp_path / "out")):
        seeds = [20 + 3 * i + k for k in range(3)]
        call = CALL | {"negative_prompt": ""}
        candidates = draw_images(pipe, [row["prompt"]] * 3, seeds, call)
        scores = candidates.mean((1, 2, 3))
        best = int(scores.argmax())
        assert int(row["seed"]) == seeds[best] and row["candidates"] == "3"
        assert float(row["reward"]) == pytest.approx(float(scores[best]), abs=1e-5)
        assert float(row["reward_mean"]) == pytest.approx(float(scores.mean()), abs=1e-5)
        kept = candidates[best].permute(1, 2, 0).numpy() * 255
        assert np.abs(pixels(tmp_path / "out" / row["file"]) - kept).max() <= 1
        chosen.append(best)
    assert len(chosen) == 3 and set(chosen) != {
        0
    }  # with this seed: always the first proves nothing


def test_a_reward_without_best_of_is_recorded(models, few, tmp_path):
    options = {"model": models["sd"], "prompts": few, "num_prompts": 2, "scheduler": "ddpm"}
    assert generate(output=tmp_path / "out", reward="jpeg_compressibility", **options) == 0
    found = table(tmp_path / "out")
    assert len(found) == 2  # --num-prompts takes the first of a file
    assert all(float(row["reward"]) == float(row["reward_mean"]) < 0 for row in found)


def test_a_generator_gives_held_out_prompts(models, tmp_path):
    from diffusion.prompts.sources import ANIMALS, load_prompts

    options = {"model": models["sd"], "prompts": "animals", "output": tmp_path / "out"}
    assert generate(num_prompts=2, **options) == 0
    given = [row["prompt"] for row in table(tmp_path / "out")]
    assert len(set(given)) == 2 and set(given) <= set(ANIMALS)
    assert given == load_prompts("animals").held_out(2, 0)


def test_a_lora_of_another_model_is_refused(models, prompts, few, tmp_path, capsys):
    run = tmp_path / "run"
    assert finetune(model=models["sdxl"], prompts=prompts, output=run, epochs=1) == 0
    capsys.readouterr()
    options = {"model": models["sd"], "prompts": few, "output": tmp_path / "out"}
    assert generate(lora=run / "lora", **options) == 2
    assert "does not fit this pipeline" in error_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora": "nowhere/lora"}, 'no LoRA at "nowhere/lora"'),
        ({"unet": "nowhere/unet"}, 'cannot load a UNet from "nowhere/unet"'),
        ({"best_of": 4}, "--best-of 4 needs --reward"),
        ({"best_of": 0}, "--best-of must be at least 1"),
        ({"prompts": "animals"}, "add --num-prompts"),
        ({"num_prompts": 0}, "--num-prompts must be at least 1"),
        ({"reward": "jpg_compressibility"}, 'mean "jpeg_compressibility"'),
        ({"model": "/nowhere/at/all"}, "does not exist"),
        ({"device": "warp"}, "--device warp"),
    ],
)
def test_bad_input_is_one_line(options, said, models, few, tmp_path, capsys):
    output = tmp_path / "out"
    assert generate(**{"model": models["sd"], "prompts": few, "output": output} | options) == 2
    assert said in error_line(capsys.readouterr().err)
    assert not output.exists()


def test_images_already_there_are_not_overwritten(drawn, models, few, capsys):
    before = (drawn / "images.csv").read_bytes()
    assert generate(model=models["sd"], prompts=few, output=drawn) == 2
    assert "already holds images.csv" in error_line(capsys.readouterr().err)
    assert (drawn / "images.csv").read_bytes() == before


@pytest.mark.parametrize("how", ["asked", "failed"])
def test_what_is_stopped_keeps_its_pictures_and_their_rows(
    how, models, few, drawn, tmp_path, monkeypatch, capsys
):
    from genpol.commands.generate import command

    draw, calls = command.draw_images, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 2 and how == "asked":
            signal.raise_signal(signal.SIGTERM)
        if len(calls) == 3:
            raise InputError("the reward's server has gone")
        return draw(*args)

    monkeypatch.setattr(command, "draw_images", stopped)
    options = {"model": models["sd"], "prompts": few, "images_per_prompt": 2, "seed": 5}
    output = tmp_path / "out"
    assert generate(output=output, batch=1, **options) == (143 if how == "asked" else 2)
    pictures = {"00000.png", "00001.png", "grid.png"}
    assert {path.name for path in output.iterdir()} == pictures | {"images.csv"}
    assert table(output) == table(drawn)[:2]
    if how == "asked":
        assert f"stopped after 2 of 6 images, which are in {output}" in capsys.readouterr().out
