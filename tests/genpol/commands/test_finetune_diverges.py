"""Fine-tuning that diverges says so, keeps the last good weights, and goes on from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_rewards
import torch
from safetensors.torch import load_file, save_file
from small_runs import checkpoint, error_line, finetune, resume, rows

from genpol.cli import main

SHORT = {"inner_steps": 1, "num_inference_steps": 2, "guidance_scale": 1.0, "eval_every": 100}
LORA = "pytorch_lora_weights.safetensors"


def last_line(err: str) -> str:
    line = err.splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in err and len(line) < 600
    return line


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "lora" / LORA)


@pytest.fixture
def run(models, prompts, tmp_path):
    """Starts runs that are the same but for some options."""
    common = {"model": models["sd"], "prompts": prompts, "output": tmp_path / "run"}
    return lambda **options: finetune(
        **(SHORT | common | {"reward": "tiny_rewards:brightness"} | options)
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rate": 1e28, "inner_steps": 2}, "became"),
        pytest.param({"learning_rate": 1e12, "inner_steps": 2}, "became", marks=pytest.mark.slow),
        ({"reward": "tiny_rewards:huge", "beta": 1e-300}, "the gradient became"),
        ({"learning_rate": 1e5, "dtype": "fp16", "inner_steps": 2}, "use bf16 instead of fp16"),
    ],
    ids=["overflows", "is senseless", "huge rewards", "fp16"],
)
def test_it_is_one_line_and_the_weights_before_stay(options, said, run, tmp_path, capsys):
    assert run(**options) == 2
    line = last_line(capsys.readouterr().err)
    assert "fine-tuning diverged in epoch 1, at step" in line and "Lower --learning-rate" in line
    assert said in line and "checkpoint of epoch 0 is kept; continue with --resume" in line
    step, tensors, _ = checkpoint(tmp_path / "run")
    assert step == 0 and all(torch.isfinite(t).all() for t in tensors.values())
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "run").values())


def test_it_goes_on_with_another_learning_rate(run, tmp_path, monkeypatch, capsys):
    """From the last good epoch, which is the second: at the third the rewards become huge."""
    calls = 0

    def reward(images, prompts):
        nonlocal calls
        calls += 1
        return tiny_rewards.brightness(images, prompts) * (1e37 if calls == 5 else 1)

    monkeypatch.setattr(tiny_rewards, "fragile", reward)
    folder = tmp_path / "run"
    bad = {"reward": "tiny_rewards:fragile", "epochs": 3, "weight_decay": 0, "learning_rate": 1e-4}
    assert run(**bad) == 2
    assert "checkpoint of epoch 2 is kept" in last_line(capsys.readouterr().err)
    before = weights(folder)
    assert checkpoint(folder)[0] == 2 and all(torch.isfinite(t).all() for t in before.values())
    assert resume(folder, learning_rate=1e-5) == 0
    assert [row["step"] for row in rows(folder)] == ["0", "1", "2", "3"]
    assert json.loads((folder / "config.json").read_text())["learning_rate"] == 1e-5
    moved = max(float((a - before[n]).abs().max()) for n, a in weights(folder).items())
    assert 0 < moved < 2e-5


def test_weights_of_a_diverged_training_are_refused_where_they_are_loaded(
    run, models, tmp_path, capsys
):
    assert run(epochs=1) == 0
    capsys.readouterr()
    file = tmp_path / "run" / "lora" / LORA
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    output = tmp_path / "next"
    assert run(lora=file.parent, output=output) == 2
    assert "holds NaN or infinite weights" in error_line(capsys.readouterr().err)
    words = ["--num-prompts", "1", "--lora", str(file.parent), "--output", str(output)]
    model = str(models["sd"])
    assert main(["generate", "--prompts", "world", "--model", model, *words]) == 2
    assert "holds NaN or infinite weights" in error_line(capsys.readouterr().err)
    assert not output.exists()


def test_a_checkpoint_that_is_not_finite_is_passed_over(run, tmp_path, capsys):
    """Versions before this one could leave such; their state.json is the bare state."""
    folder = tmp_path / "run"
    assert run(epochs=2) == 0
    file = folder / "checkpoints" / "step-000002" / "state.safetensors"
    tensors = load_file(file)
    next(t for n, t in tensors.items() if n.startswith("weights."))[0] = float("inf")
    save_file(tensors, file)
    described = file.with_name("state.json")
    described.write_text(json.dumps(json.loads(described.read_text())["state"]))
    capsys.readouterr()
    assert resume(folder) == 0
    assert "weights" in capsys.readouterr().err and checkpoint(folder)[0] == 2
