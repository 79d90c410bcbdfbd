"""Values of pipelines that were never trained, but do tell latents apart."""

from __future__ import annotations

from pathlib import Path

import torch

from diffusion.pipelines import ImagePolicy
from diffusion.values.image_value import ImageValue, ValueAbout
from diffusion.values.text import text_sizes


def tiny_value(policy: ImagePolicy, seed: int = 0, std: float = 1.0, **about) -> ImageValue:
    """A random value of the policy's pipeline; `std` is of its reward."""
    sizes = text_sizes(policy.encode(["a cat"]))
    given = {"pipeline": type(policy.pipe).__name__, "latent_shape": policy.latent_shape}
    given |= {"text": sizes, "reward": "brightness", "width": 8, "blocks": 1, "std": std}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = ImageValue(ValueAbout(**(given | about)))
        head = value.network.head[-1]
        torch.nn.init.normal_(head.weight)
    return value.eval().requires_grad_(False)


def saved_value(model: str | Path, folder: Path, seed: int = 0, **about) -> Path:
    """The same in a folder, of the pipeline that --model names."""
    from diffusion.loading import load_pipeline

    policy = ImagePolicy(load_pipeline(str(model)), guidance_scale=1.0, train="nothing")
    return tiny_value(policy, seed, **about).save(folder)
