"""Pipelines with the shapes of public models on the CPU: an epoch takes what its plan says.

Random weights in bf16 (scripts/real_shapes.py), 512 pixels, 2 prompts x 2 images. Each epoch runs
in a process of its own, whose resident memory is measured. Minutes, and up to 12 GB.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import ROOT

from genpol.commands.finetune.command import complete
from genpol.commands.finetune.options import Finetune
from genpol.commands.finetune.plan import plan_of
from scripts.real_shapes import SHAPES, build

EPOCH = {
    **{"dtype": "bf16", "storage_dtype": "bf16", "device": "cpu", "guidance_scale": 1.0},
    **{"reward": "jpeg_compressibility", "gold_reward": "", "prompts": "animals"},
    **{"prompts_per_epoch": 2, "images_per_prompt": 2, "inner_steps": 1, "lora_rank": 4},
    **{"rollout_batch": 2, "micro_batch": 1, "eval_images": 1, "height": 512, "width": 512},
}


def grown(model: Path, steps: int, *passes: str) -> float:
    """Bytes by which an epoch's process grew beyond its libraries."""
    options = json.dumps(EPOCH | {"model": str(model), "num_inference_steps": steps})
    script = ROOT / "tests" / "helpers" / "measured_run.py"
    found = subprocess.run(
        [sys.executable, str(script), options, *passes], capture_output=True, text=True, cwd=ROOT
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return json.loads(found.stdout.splitlines()[-1])["grown"]


def planned(model: Path, steps: int) -> int:
    """What the plan says of the same epoch, without an evaluation."""
    config = complete(Finetune(**EPOCH, model=str(model), num_inference_steps=steps))
    found = plan_of(config)
    phases = ("load", "encode", "draw", "decode", "train", "step")
    return max(found.at(phase, "host") for phase in phases)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
def test_an_epoch_takes_what_the_plan_says_at_any_number_of_steps(shape, tmp_path):
    model = build(shape, tmp_path / shape)
    # The second epoch ends after a few passes: all of them would take SDXL two hours of a core.
    few, many = grown(model, 4), grown(model, 16, "4")
    assert few == pytest.approx(planned(model, 4), rel=0.15)
    assert many == pytest.approx(few, rel=0.10)


@pytest.mark.parametrize("shape", ["sdxl", "sd35-medium", "flux"])
def test_small_pipelines_of_every_shape_load(shape, tmp_path):
    from diffusion.loading import load_pipeline

    pipe = load_pipeline(str(build(shape, tmp_path / shape, small=True)), dtype="bf16")
    assert type(pipe).__name__ == SHAPES[shape]["pipeline"]


def test_weights_come_in_several_files_without_twice_their_memory(tmp_path, monkeypatch):
    import torch

    from diffusion.loading import load_pipeline

    monkeypatch.setattr("scripts.real_shapes.SHARD", 20_000)
    whole = load_pipeline(str(build("sd15", tmp_path / "a", small=True)))
    files = sorted((tmp_path / "a" / "unet").glob("*.safetensors"))
    assert len(files) > 2 and (tmp_path / "a" / "vae").is_dir()
    weights = whole.unet.state_dict()
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    drawn = weights["down_blocks.0.resnets.0.conv1.weight"]
    assert 0.015 < float(drawn.std()) < 0.025
    # norms are the identity
    assert bool((weights["down_blocks.0.resnets.0.norm1.weight"] == 1).all())
