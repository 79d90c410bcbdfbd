"""The shipped pipeline: small, safe to load, of the classes users have, and competent."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DDIMScheduler

from diffusion.loading import TINY
from diffusion.recommended import TINY as SETTINGS

CLASSES = {
    "text_encoder": "CLIPTextModel",
    "vae": "AutoencoderKL",
    "unet": "UNet2DConditionModel",
}


def test_it_is_small_and_holds_no_code():
    files = [path for path in TINY.rglob("*") if path.is_file()]
    assert TINY / "model_index.json" in files
    assert sum(path.stat().st_size for path in files) <= 10e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}


def test_its_index_names_the_classes_users_have():
    index = json.loads((TINY / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert {part: index[part][1] for part in CLASSES} == CLASSES


@pytest.fixture(scope="module")
def pipe():
    """Loaded by diffusers alone."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(TINY, use_safetensors=True, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_parts_are_of_those_classes(pipe):
    assert {part: type(getattr(pipe, part)).__name__ for part in CLASSES} == CLASSES


def test_it_is_competent_and_improvable(pipe):
    """By the gold checker, on captions it never saw: room above, and far from noise below."""
    from diffusion.prompts.sources import load_prompts
    from diffusion.world.gold import score

    prompts = load_prompts("world").held_out(128, 0)
    assert len(set(prompts)) == 128
    generators = [torch.Generator().manual_seed(1000 + i) for i in range(len(prompts))]
    images = pipe(
        prompts,
        num_inference_steps=SETTINGS["num_inference_steps"],
        guidance_scale=SETTINGS["guidance_scale"],
        eta=1.0,
        generator=generators,
        output_type="pt",
    ).images.float()
    assert images.shape == (128, 3, 64, 64)
    verdict = score(images, prompts)
    assert 0.55 <= float(verdict["attributes"].mean()) <= 0.85
    assert float(verdict["wholly"].mean()) >= 0.15


def test_its_scheduler_stays_finite_at_eta_1_for_any_number_of_steps():
    """A schedule that ends at exactly zero signal makes diffusers' DDIM step NaN at 50 steps."""
    scheduler = DDIMScheduler.from_pretrained(TINY / "scheduler")
    x = torch.ones(1, 4, 8, 8)
    for steps in (3, 10, 16, 50, 76, 100):
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            generator = torch.Generator().manual_seed(0)
            out = scheduler.step(0.5 * x, t, x, eta=1.0, generator=generator).prev_sample
            assert torch.isfinite(out).all(), (steps, int(t))
