"""Images of tiny pipelines of every family: by our own code, and by the pipeline's own call."""

from __future__ import annotations

from typing import Any

import torch
from tiny_families import tiny

from diffusion.chain import sample_chain
from diffusion.loading import prepare_pipeline
from diffusion.pipelines import ImagePolicy

# What the pipeline's own call is told beside prompts, steps, guidance and generators.
SIZES = {
    "sd": {"height": 16, "width": 16},
    "sdxl": {"height": 16, "width": 16},
    "pixart": {},
    "sd3": {"max_sequence_length": 8},
    "flux": {"height": 32, "width": 32, "max_sequence_length": 16},
    "flux2_klein": {"height": 32, "width": 32, "max_sequence_length": 24},
    "qwen_image": {"height": 32, "width": 32},
    "z_image": {"height": 32, "width": 32, "max_sequence_length": 24},
    "sana": {"height": 32, "width": 32, "max_sequence_length": 24},
}
EXTRA = {
    "sd": {"eta": 1.0},
    "sdxl": {"eta": 1.0},
    "pixart": {"eta": 1.0, "use_resolution_binning": False},
    "sana": {"use_resolution_binning": False},
}
PROMPTS = ["a cat", "a dog!"]


def policy_of(name: str, scale: float = 1.0, **options: Any) -> ImagePolicy:
    """A policy on a tiny pipeline of the family, at a guidance scale; `options` are its other
    arguments."""
    negative = "no" if name == "qwen_image" else ""
    pipe = prepare_pipeline(tiny(name))
    return ImagePolicy(
        pipe, guidance_scale=scale, negative_prompt=negative, **SIZES[name], **options
    )


def streams() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(2)]


def guidance(name: str, scale: float) -> dict:
    """The pipeline's own words for a guidance scale."""
    if name == "qwen_image":
        return {"true_cfg_scale": scale, "negative_prompt": ["no", "no"] if scale > 1 else None}
    return {"guidance_scale": scale - 1 if name == "z_image" else scale}


def own_images(name: str, pipe: Any, scale: float) -> torch.Tensor:
    """Images (2, 3, H, W) of `PROMPTS` by the pipeline's own call."""
    return pipe(
        prompt=list(PROMPTS),  # some pipelines write into the list
        num_inference_steps=3,
        generator=streams(),
        output_type="pt",
        **guidance(name, scale),
        **SIZES[name],
        **EXTRA.get(name, {}),
    ).images


def drawn(policy: ImagePolicy) -> torch.Tensor:
    """The same images by our own code."""
    process = policy.process(3, sampler="ode")
    cond = policy.encode(PROMPTS)
    chain = sample_chain(policy.predict, process, cond, policy.latent_shape, streams())
    return policy.decode(chain.sample)
