"""What a user can get wrong with `genpol finetune`: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import error_line, finetune, resume

from genpol.cli import main


@pytest.fixture
def files(tmp_path, models) -> Path:
    """Broken prompts and models under one folder."""
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes("ein Kätzchen\nzwei\n".encode("latin-1"))
    (tmp_path / "table.csv").write_text("caption,n\na cat,1\na dog,2\n")
    (tmp_path / "folder").mkdir()
    for name, index in {"broken": "{", "foreign": '{"_class_name": "NoSuchPipeline"}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(index)
    shutil.copytree(models["sd"], tmp_path / "torn")
    weights = tmp_path / "torn" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return tmp_path


BAD = {
    "no model folder": ({"model": "{}/missing"}, "does not exist"),
    "no model_index.json": ({"model": "{}/folder"}, "no model_index.json"),
    "model_index.json is no JSON": ({"model": "{}/broken"}, "cannot load pipeline"),
    "unknown pipeline class": ({"model": "{}/foreign"}, "is a NoSuchPipeline; supported are"),
    "torn weights": ({"model": "{}/torn"}, "cannot load pipeline"),
    "no such prompts": ({"prompts": "{}/no.txt"}, "no file of that name"),
    "empty prompts": ({"prompts": "{}/empty.txt"}, "no prompts"),
    "not UTF-8": ({"prompts": "{}/latin.txt"}, "UTF-8"),
    "no such column": (
        {"prompts": "{}/table.csv", "prompt_column": "captions"},
        'no column "captions". Did you mean "caption"?',
    ),
    "unknown reward": ({"reward": "jpeg_compresibility"}, 'mean "jpeg_compressibility"'),
    "no such function": ({"reward": "tiny_rewards:brightnes"}, 'mean "brightness"'),
    "server down": ({"reward": "http://127.0.0.1:9?retries=0"}, "Connection refused"),
    "one image": ({"images_per_prompt": 1}, "--images-per-prompt 1"),
    "no epochs": ({"epochs": 0}, "--epochs must be at least 1"),
    "no such device": ({"device": "warp"}, "--device warp"),
    "no such LoRA": ({"lora": "{}/folder"}, "no LoRA at"),
    "no density": ({"eta": 0.0}, "--eta"),
    "wrong ema": ({"ema": 1.0}, "--ema"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, files, models, prompts, capsys):
    options, said = BAD[case]
    options = {k: v.format(files) if isinstance(v, str) else v for k, v in options.items()}
    output = files / "run"
    assert finetune(**{"model": models["sd"], "prompts": prompts, "output": output} | options) == 2
    assert said in error_line(capsys.readouterr().err)
    assert not output.exists()


def test_an_unknown_command_is_one_line(capsys):
    assert main(["finetun"]) == 2
    assert 'Did you mean "finetune"?' in error_line(capsys.readouterr().err)


@pytest.fixture(scope="module")
def finished(models, prompts, tmp_path_factory) -> Path:
    """One epoch from a model folder that the tests may change, and from a LoRA."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(models["sd"], folder / "model")
    options = {"model": folder / "model", "prompts": prompts, "epochs": 1}
    assert finetune(output=folder / "run", **options) == 0
    assert finetune(output=folder / "next", lora=folder / "run" / "lora", **options) == 0
    return folder


def test_another_model_under_a_run_is_refused(finished, capsys):
    file = finished / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    good = file.read_bytes()
    tensors = load_file(file)
    tensors["conv_in.weight"] = tensors["conv_in.weight"] + 0.01
    save_file(tensors, file, metadata={"format": "pt"})
    try:
        assert resume(finished / "run", epochs=2) == 2
        assert "the model of the run" in error_line(capsys.readouterr().err)
    finally:
        file.write_bytes(good)


def test_another_lora_under_a_run_is_refused(finished, capsys):
    """It is the reference: what was learned against it means nothing against another."""
    file = finished / "run" / "lora" / "pytorch_lora_weights.safetensors"
    good = file.read_bytes()
    save_file({k: torch.zeros_like(v) for k, v in load_file(file).items()}, file)
    try:
        assert resume(finished / "next", epochs=2) == 2
        assert "the lora of the run" in error_line(capsys.readouterr().err)
    finally:
        file.write_bytes(good)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "another"}, "--model another differs"),
        ({"beta": 7.0}, "--beta 7.0 differs"),
        ({"epochs": 9, "reward": "gold"}, "--reward gold differs"),
    ],
)
def test_a_conflicting_option_is_refused(options, said, finished, capsys):
    before = (finished / "run" / "metrics.csv").read_bytes()
    assert resume(finished / "run", **options) == 2
    assert said in error_line(capsys.readouterr().err)
    assert (finished / "run" / "metrics.csv").read_bytes() == before


def test_an_empty_folder_cannot_be_resumed(tmp_path, capsys):
    assert resume(tmp_path) == 2
    assert "holds no run" in error_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_run_is_not_overwritten(finished, models, prompts, capsys):
    before = json.loads((finished / "run" / "summary.json").read_text())
    output = finished / "run"
    assert finetune(model=models["sd"], prompts=prompts, output=output) == 2
    assert "already holds a finished run" in error_line(capsys.readouterr().err)
    assert json.loads((output / "summary.json").read_text()) == before
