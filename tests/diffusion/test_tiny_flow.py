"""The shipped flow pipeline: small, safe to load, of SD3's classes, and competent."""

from __future__ import annotations

import json

import torch

from diffusion.loading import SHIPPED, load_pipeline
from diffusion.recommended import recommended

FOLDER = SHIPPED["tiny-flow"]
CLASSES = {
    "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "vae": "AutoencoderKL",
    "transformer": "SD3Transformer2DModel",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}


def test_it_is_small_and_holds_no_code():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}


def test_its_index_names_the_classes_users_have():
    index = json.loads((FOLDER / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline"
    assert {part: index[part][1] for part in CLASSES} == CLASSES


def test_it_is_competent_and_improvable():
    """By the gold checker, on captions it never saw: room above, and far from noise below."""
    from diffusion.prompts.sources import load_prompts
    from diffusion.world.gold import score

    settings = recommended("tiny-flow", "prdp-forward")
    prompts = load_prompts("world").held_out(96, 0)
    pipe = load_pipeline("tiny-flow")
    images = pipe(
        prompts,
        num_inference_steps=settings["num_inference_steps"],
        guidance_scale=settings["guidance_scale"],
        max_sequence_length=settings["max_sequence_length"],
        generator=[torch.Generator().manual_seed(1000 + i) for i in range(len(prompts))],
        output_type="pt",
    ).images
    right = float(score(images.float(), prompts)["attributes"].mean())
    assert 0.55 < right < 0.85
