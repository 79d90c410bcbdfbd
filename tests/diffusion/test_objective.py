"""The weights of the denoising steps."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from tiny_models import SCHEDULE

from diffusion.errors import InputError
from diffusion.objective import step_weights
from diffusion.process import reverse_process


def test_uniform_weights():
    process = reverse_process(DDIMScheduler(**SCHEDULE), 10)
    torch.testing.assert_close(
        step_weights(process, "uniform"), torch.full((10,), 0.1, dtype=torch.float64)
    )
    with pytest.raises(InputError, match="skip_last"):
        step_weights(process, "linear")


@pytest.mark.parametrize(
    ("scheduler", "skipped"),
    [
        (DDIMScheduler(**SCHEDULE | {"timestep_spacing": "trailing"}), 9),
        (DDIMScheduler(clip_sample=False), 8),  # step 9 is deterministic
        (DDPMScheduler(clip_sample=False), 8),
        # Stable Diffusion's: the last step, t = 1 to the final noise level, is harmless
        (DDIMScheduler(**SCHEDULE), 8),
    ],
)
def test_skip_last_leaves_out_the_step_that_drowns_the_others(scheduler, skipped):
    process = reverse_process(scheduler, 10)
    weight = step_weights(process, "skip_last")
    kept = process.stochastic.clone()
    kept[skipped] = False
    torch.testing.assert_close(weight, kept.double() / kept.sum())
    squared = process.sensitivity**2
    assert squared[skipped] > 15 * squared[kept].max()


def test_skip_last_keeps_an_only_step():
    process = reverse_process(DDIMScheduler(**SCHEDULE), 1)
    assert step_weights(process, "skip_last").tolist() == [1]


def test_balanced_weights_give_every_step_the_same_say():
    process = reverse_process(DDIMScheduler(clip_sample=False), 10)
    weight = step_weights(process, "balanced")
    say = (weight * process.sensitivity)[:9]
    torch.testing.assert_close(say, say[:1].expand(9))
    assert weight[9] == 0 and math.isclose(float(weight.sum()), 1)
