"""A run whose denoiser is split over two processes is the run of one, and goes on in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from forked import FSDP2, in_processes
from small_runs import SMALL, checkpoint, lasting, resume, words

from diffusion.loading import load_pipeline

OPTIONS: dict[str, Any] = {
    "model": "tiny-flow",
    "prompts": "world",
    "reward": "tiny_rewards:brightness",
    "gold_reward": "tiny_rewards:brightness",
    "prompts_per_epoch": 1,
    "images_per_prompt": 3,
    "micro_batch": 4,
    "num_inference_steps": 3,
    "sampler": "flow-sde",
    "inner_steps": 1,
    "learning_rate": 1e-5,
    "eval_images": 1,
    "eval_every": 9,
    "ema": 0.5,
    "device": "cpu",
}


def finetune(folder: Path, **more: Any) -> int:
    from genpol.cli import main

    return main(["finetune", *words(**(SMALL | OPTIONS | more), output=folder)])


@pytest.mark.parametrize("train", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_two_processes_that_share_the_weights_equal_one(train, tmp_path):
    split, whole = tmp_path / "split", tmp_path / "whole"
    assert finetune(whole, train=train, epochs=3) == 0
    codes = in_processes(2, lambda: finetune(split, train=train), FSDP2, joining=False)
    assert codes == [0, 0]
    assert resume(split, epochs=3) == 0  # in one process
    assert_alike(split, whole)
    assert_loads(split, train)


def assert_alike(split: Path, whole: Path) -> None:
    for one, other in zip(lasting(split), lasting(whole), strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if value and one[name]:
                # The first steps of AdamW turn rounding of small gradients into 1e-4 of a KL.
                rough = 1e-3 if "kl" in name else 1e-5
                assert float(one[name]) == pytest.approx(float(value), rel=rough, abs=1e-5), name
    (step, mine, _), (last, theirs, _) = checkpoint(split), checkpoint(whole)
    assert step == last and mine.keys() == theirs.keys()
    for kind in ("weights.", "ema.", "optimiser.exp_avg.", "optimiser.exp_avg_sq."):
        names = [name for name in theirs if name.startswith(kind)]
        gap, size = apart(mine, theirs, names)
        assert gap <= (1e-4 if kind.startswith("optimiser") else 1e-5) * size, kind
        if kind == "weights.":  # AdamW has moved each weight by up to the learning rate each time
            count = sum(theirs[name].numel() for name in names)
            assert gap <= 0.01 * OPTIONS["learning_rate"] * step * count**0.5


def apart(one: dict, other: dict, names: list[str]) -> tuple[float, float]:
    """Norms of a difference and of what it is compared with, over all tensors."""
    gap = sum(float((one[n].double() - other[n].double()).square().sum()) for n in names)
    return gap**0.5, sum(float(other[n].double().square().sum()) for n in names) ** 0.5


def assert_loads(folder: Path, train: str) -> None:
    """In plain diffusers, with the averaged weights."""
    stored = checkpoint(folder)[1]
    if train == "full":
        from diffusers import SD3Transformer2DModel

        found = dict(SD3Transformer2DModel.from_pretrained(folder / "unet").named_parameters())
        assert len(found) == sum(name.startswith("weights.") for name in stored)
        assert all(torch.equal(value, stored[f"ema.{name}"]) for name, value in found.items())
    else:
        pipe = load_pipeline("tiny-flow")
        pipe.load_lora_weights(folder / "lora")
        found = {n: p for n, p in pipe.transformer.named_parameters() if "lora_" in n}
        assert len(found) == sum(name.startswith("weights.") for name in stored)
