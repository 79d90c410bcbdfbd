"""The options of a LoRA from end to end: alpha, dropout, targets, DoRA, export, starting again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from small_runs import assert_same_checkpoint, error_line, finetune, lasting, resume, words
from tiny_families import tiny

from genpol.cli import main

PLAIN = "pytorch_lora_weights.safetensors"
KOHYA = "lora_kohya.safetensors"
TRAINED = {
    "lora_rank": 2, "lora_alpha": 8.0, "lora_dropout": 0.4, "lora_targets": "to_q,conv1",
    "lora_dora": True, "export": "kohya",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(models, prompts, tmp_path_factory) -> Path:
    """Two epochs with every option."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    assert finetune(model=models["sd"], prompts=prompts, output=folder, **TRAINED) == 0
    return folder


def test_ratios_are_exact_under_dropout_and_a_resume_is_bit_for_bit(run, models, prompts, tmp_path):
    table = lasting(run)
    assert all(float(row["check/ratio_error"]) < 1e-5 for row in table if row["prdp/loss"])
    other = tmp_path / "other"
    given = TRAINED | {"model": models["sd"], "prompts": prompts, "output": other, "epochs": 1}
    assert finetune(**given) == 0
    assert resume(other, epochs=2) == 0
    assert_same_checkpoint(other, run)
    assert lasting(other)[-1] == table[-1]
    for name in (PLAIN, KOHYA):
        assert (other / "lora" / name).read_bytes() == (run / "lora" / name).read_bytes()


@pytest.mark.slow
def test_dropout_changes_the_training(run, models, prompts, tmp_path):
    other = tmp_path / "other"
    given = TRAINED | {"model": models["sd"], "prompts": prompts, "output": other}
    assert finetune(**given | {"lora_dropout": 0.0}) == 0
    assert lasting(other)[0]["eval/reward"] == lasting(run)[0]["eval/reward"]  # none left out
    assert (other / "lora" / PLAIN).read_bytes() != (run / "lora" / PLAIN).read_bytes()


def test_the_files_say_what_they_are(run):
    with safe_open(run / "lora" / KOHYA, "pt") as file:
        about, keys = file.metadata(), list(file.keys())
        alphas = {float(file.get_tensor(key)) for key in keys if key.endswith(".alpha")}
    assert alphas == {8.0} and all(key.startswith("lora_unet_") for key in keys)
    assert {key.rpartition(".")[2] for key in keys} == {"weight", "alpha", "dora_scale"}
    assert about["ss_network_dim"] == "2" and about["ss_network_alpha"] == "8.0"
    assert about["ss_steps"] == "4" and about["ss_epoch"] == "2"
    assert about["genpol.reward"] == "jpeg_compressibility"
    assert about["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert about["modelspec.resolution"] == "16x16"
    assert "No trigger word" in about["modelspec.usage_hint"]
    with safe_open(run / "lora" / PLAIN, "pt") as file:
        assert file.metadata()["genpol.lora_scale"] == "4.0"
        assert not any(key.endswith(".alpha") for key in file.keys())
    assert not any(str(run.parent) in value for value in about.values())


@pytest.mark.slow
def test_the_exported_file_draws_the_same_and_trains_on(run, models, few_prompts, tmp_path):
    pictures = []
    for name in (PLAIN, KOHYA):
        output = tmp_path / name
        given = {"model": models["sd"], "prompts": few_prompts, "output": output, "seed": 3}
        given |= {"num_inference_steps": 2, "lora": run / "lora" / name}
        assert main(["generate", *words(**given)]) == 0
        pictures.append([file.read_bytes() for file in sorted(output.glob("*.png"))])
    assert pictures[0] == pictures[1] and pictures[0]
    again = tmp_path / "again"
    given = {"model": models["sd"], "prompts": few_prompts, "epochs": 1, "held_out": 0.0}
    assert finetune(**given, lora=run / "lora" / KOHYA, output=again, train="lora") == 0
    with safe_open(again / "lora" / PLAIN, "pt") as file:
        assert file.metadata()["genpol.lora_scale"] == "4.0"  # its alpha is kept


@pytest.fixture
def few_prompts(tmp_path) -> Path:
    file = tmp_path / "few.txt"
    file.write_text("a hen\na cow\n")
    return file


def test_a_finished_run_is_exported_later(models, prompts, tmp_path):
    folder = tmp_path / "run"
    assert finetune(model=models["sd"], prompts=prompts, output=folder, epochs=1) == 0
    assert not (folder / "lora" / KOHYA).exists()
    before = (folder / "lora" / PLAIN).read_bytes()
    assert resume(folder, export="kohya") == 0
    assert (folder / "lora" / KOHYA).is_file()
    assert (folder / "lora" / PLAIN).read_bytes() == before
    assert json.loads((folder / "config.json").read_text())["export"] == "kohya"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora_targets": "to_qq"}, 'Did you mean "to_q"'),
        ({"lora_dropout": 1.0}, "--lora-dropout"),
        ({"lora_alpha": 0.0}, "--lora-alpha"),
        ({"train": "full", "lora_dropout": 0.1}, "--train full trains none"),
        ({"train": "full", "export": "kohya"}, "--train full trains none"),
        ({"export": "civitai"}, "--export expects"),
        ({"lora": "{run}/lora", "lora_alpha": 2.0}, "of a new LoRA"),
    ],
)
def test_options_that_cannot_be_are_one_line(options, said, run, models, prompts, tmp_path, capsys):
    capsys.readouterr()
    given = dict(options)
    if "lora" in given:
        given["lora"] = given["lora"].format(run=run)
    output = tmp_path / "out"
    assert finetune(model=models["sd"], prompts=prompts, output=output, **given) == 2
    assert said in error_line(capsys.readouterr().err)
    assert not output.exists()


def test_a_partial_match_is_said_on_the_way(run, models, few_prompts, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(run / "lora" / PLAIN) | {"unet.strange.lora_A.weight": torch.ones(2, 2)}
    save_file(tensors, tmp_path / "more.safetensors")
    given = {"model": models["sd"], "prompts": few_prompts, "num_inference_steps": 1}
    given |= {"lora": tmp_path / "more.safetensors", "output": tmp_path / "out"}
    with pytest.warns(UserWarning, match=f"{len(tensors) - 1} of {len(tensors)} keys are used"):
        assert main(["generate", *words(**given)]) == 0


@pytest.mark.slow
def test_pixart_trains_a_lora(prompts, tmp_path):
    """diffusers has no LoRA for its class; ours is read back by generate."""
    model = tmp_path / "pixart"
    tiny("pixart").save_pretrained(model)
    folder = tmp_path / "run"
    given = {"model": model, "prompts": prompts, "guidance_scale": 1.0, "export": "kohya"}
    assert finetune(output=folder, epochs=1, **given) == 0
    with safe_open(folder / "lora" / PLAIN, "pt") as file:
        assert all(key.startswith("transformer.transformer_blocks.") for key in file.keys())
    again = tmp_path / "again"
    assert finetune(output=again, epochs=1, lora=folder / "lora", **given) == 0
    assert float(lasting(again)[1]["kl/per_dim"]) <= 1e-9
