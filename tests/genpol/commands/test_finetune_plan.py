"""`genpol finetune --plan`: what it says, and that a run takes what it says."""

from __future__ import annotations

import pytest
import torch

from diffusion.planning.live_bytes import LiveBytes
from genpol.commands.finetune.command import build, complete
from genpol.commands.finetune.options import Finetune
from genpol.commands.finetune.plan import plan_of

SMALL = {
    **{"prompts_per_epoch": 2, "images_per_prompt": 2, "inner_steps": 2, "num_inference_steps": 3},
    **{"eval_images": 2, "device": "cpu", "reward": "jpeg_compressibility", "prompts": "animals"},
    **{"rollout_batch": 4, "micro_batch": 4, "gold_reward": "", "epochs": 1},
}
RUNS = {
    "lora": {"model": "tiny", "guidance_scale": 3.0},
    "full": {"model": "tiny-flow", "train": "full", "ema": 0.9, "gradient_checkpointing": True},
}


def measured(config: Finetune) -> int:
    """The most bytes of tensors alive at a time in an epoch and an evaluation."""
    tuner, _ = build(config)
    modules = [p for p in tuner.policy.pipe.components.values() if isinstance(p, torch.nn.Module)]
    modules += [m for m in tuner.policy.networks() if m not in modules]
    with LiveBytes() as live:
        live.add(t for m in modules for t in (*m.parameters(), *m.buffers()))
        live.add(tuner.trained.average.values())
        tuner.run_epoch()
        tuner.evaluate(2)
    return live.peak_total


@pytest.mark.parametrize("name", RUNS)
def test_a_run_takes_what_the_plan_says(name):
    config = complete(Finetune(**SMALL | RUNS[name]))
    found = plan_of(config)
    phase, planned = found.peak("host")
    assert planned == pytest.approx(measured(config), rel=0.15)
    assert phase in ("train", "decode", "show")
