"""Sizes of batches and what is offloaded, as the command decides them for a device."""

from __future__ import annotations

import pytest

import genpol.runs.device
from diffusion.config import check
from diffusion.errors import InputError
from diffusion.recommended import recommended
from genpol.commands.finetune.memory import SIZES, for_device, typical_size
from genpol.commands.finetune.options import GROUPS, RESUMABLE, Finetune
from genpol.commands.parsing import parse

USUAL = recommended("some/model", "prdp")


def decided(machine: str, **options) -> tuple:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(genpol.runs.device, "pick_device", lambda asked: asked or machine)
        found = for_device(Finetune(**options), USUAL).resolved(USUAL)
    return found.rollout_batch, found.micro_batch


def test_sizes_are_found_on_a_gpu_unless_given():
    assert decided("cuda") == ("auto", "auto")
    assert decided("cuda", micro_batch=3) == ("auto", 3)
    assert decided("cpu", device="cuda:1", rollout_batch="auto") == ("auto", "auto")


def test_on_a_cpu_auto_is_what_is_recommended():
    assert decided("cpu") == (8, 4)
    assert decided("cpu", rollout_batch="auto", micro_batch=7) == (8, 7)
    assert decided("mps", rollout_batch="auto") == (8, 4)


def test_a_measurement_takes_a_number():
    assert typical_size(Finetune(micro_batch=128)) == 128
    assert typical_size(Finetune(micro_batch="auto")) == 4


def test_what_the_command_line_takes():
    given = ["--rollout-batch", "auto", "--micro-batch", "16", "--chains-on", "device"]
    config = parse(Finetune, [*given, "--offload", "vae,rewards"], "genpol finetune")
    assert (config.rollout_batch, config.micro_batch) == ("auto", 16)
    assert (config.chains_on, config.offload) == ("device", "vae,rewards")
    check(config)
    with pytest.raises(InputError, match="--micro-batch"):
        check(Finetune(micro_batch=0))
    with pytest.raises(InputError, match='Did you mean "encoders"'):
        decided("cpu", offload="encoder")


def test_a_run_may_go_on_with_less_memory():
    assert {*SIZES, "chains_on", "offload"} <= set(RESUMABLE)
    assert {*SIZES, "chains_on", "offload"} <= set(GROUPS["memory and precision"])
