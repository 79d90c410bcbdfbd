"""A tuner on a tiny random pipeline, whose epoch takes a second."""

from __future__ import annotations

from typing import Any

from family_images import SIZES
from tiny_families import tiny
from torch import Tensor

from diffusion.config import FinetuneConfig
from diffusion.finetune import Finetuner
from diffusion.loading import prepare_pipeline
from diffusion.pipelines import ImagePolicy
from diffusion.recommended import PUBLISHED


class Words:
    """Two training prompts and one that is held out."""

    def train(self, epoch: int, count: int, seed: int) -> list[str]:
        return ["a red circle", "two"][:count]

    def held_out(self, count: int, seed: int) -> list[str]:
        return ["three"]


def redness(images: Tensor, prompts: list[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) * 100


def tiny_tuner(algorithm: str = "prdp", family: str = "sd", **options: Any) -> Finetuner:
    """Two prompts, three images of each, three steps; a LoRA of rank 2."""
    small: dict[str, Any] = {
        "algorithm": algorithm,
        "prompts_per_epoch": 2,
        "images_per_prompt": 3,
        "num_inference_steps": 3,
        "guidance_scale": 1.0,
        "learning_rate": 1e-2,
        "draws": 2,
        "clip": 0.5,
        "rollout_batch": 4,
        "micro_batch": 3,
    }
    config: Any = FinetuneConfig(**(small | options)).resolved(PUBLISHED)
    policy = ImagePolicy(
        prepare_pipeline(tiny(family)),
        guidance_scale=config.guidance_scale,
        train=config.train,
        lora_rank=2,
        **SIZES[family],
    )
    prompts: Any = Words()
    return Finetuner(policy, redness, prompts, config)
