"""Settings of a fine-tuning run; light to import, so the command line stays quick."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

# The published settings (arXiv 2402.08714, large-scale run), but for what a LoRA changes: ten times
# the full UNet's 7e-6 as learning rate (untested at that scale), and the last step left out.
PUBLISHED: dict[str, Any] = {
    "epochs": 10,
    "prompts_per_epoch": 64,
    "images_per_prompt": 8,
    "inner_steps": 1,
    "beta": 3e-6,
    "clip": 1e-4,
    "num_inference_steps": 50,
    "guidance_scale": 5.0,
    "learning_rate": 7e-5,
    "step_weights": "skip_last",
    "lora_rank": 8,
    "lora_targets": "attention",
    "rollout_batch": 8,
    "micro_batch": 4,
}
# Chosen on the shipped pipeline with tuning seeds; docs/results has what they give on others.
TINY: dict[str, Any] = {
    "model": "tiny",
    "reward": "attributes",
    "prompts": "world",
    "epochs": 10,
    "prompts_per_epoch": 8,
    "images_per_prompt": 8,
    "inner_steps": 1,
    "beta": 3e-5,
    "clip": 1e-3,
    "num_inference_steps": 10,
    "guidance_scale": 1.0,
    "learning_rate": 5e-4,
    "step_weights": "balanced",
    "lora_rank": 16,
    "lora_targets": "all",
    "rollout_batch": 256,
    "micro_batch": 128,
}


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of the fine-tuning loop. `None` takes the model's recommended value."""

    algorithm: str = "prdp"
    """Objective to train with: "prdp", or module:name of a function that makes one of yours."""
    epochs: int | None = None
    """Rollout-then-update rounds; default 10."""
    seed: int = 0
    """Seed of everything random; a run is a function of its configuration."""
    prompts_per_epoch: int | None = None
    """Prompts drawn an epoch (N)."""
    images_per_prompt: int | None = None
    """Images drawn for each prompt (B); at least 2, since the loss compares images."""
    inner_steps: int | None = None
    """Optimiser steps on each epoch's images (K)."""
    beta: float | None = None
    """Reward temperature of PRDP: smaller follows the reward harder (see --unit)."""
    clip: float | None = None
    """Half-width of PRDP's per-step clip around the old log-ratio (see --unit)."""
    clipping: bool = True
    """Whether to clip at all."""
    unit: Literal["per_dim", "nats"] = "per_dim"
    """Unit of beta and clip: means over steps and dimensions as published, or joint nats."""
    aggregate: Literal["mean", "sum"] = "mean"
    """Aggregate step log-ratios by their mean (supplement) or their sum (main text)."""
    step_weights: Literal["uniform", "skip_last", "balanced"] | None = None
    """Weight of each denoising step in the log-ratio; uniform is as published."""
    num_inference_steps: int | None = None
    """Denoising steps (T)."""
    guidance_scale: float | None = None
    """Classifier-free guidance, the same in rollout, training and reference; 1 is none."""
    negative_prompt: str = ""
    """Negative prompt for guidance."""
    eta: float = 1.0
    """DDIM's noise level; 0 has no step densities to train on."""
    learning_rate: float | None = None
    """AdamW's learning rate."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradient-norm clip."""
    train: Literal["lora", "full"] = "lora"
    """Train a LoRA, or the full UNet."""
    lora_rank: int | None = None
    """Rank of the LoRA."""
    lora_targets: Literal["attention", "all"] | None = None
    """Layers that get one: attention projections, or also feed-forward and convolutions."""
    ema: float = 0.0
    """Decay of an exponential moving average of the trained weights; 0 is none."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    autocast: Literal["bf16", "fp16"] | None = None
    """Mixed-precision autocast for the UNet."""
    storage_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Storage of the chains; rounded before scoring, so log-probs stay exact."""
    rollout_batch: int | None = None
    """Images drawn at a time."""
    micro_batch: int | None = None
    """Denoising steps per forward/backward; bounds memory, never changes the gradient."""
    eval_images: int = 64
    """Images at each evaluation, one for each of that many held-out prompts, with fixed seeds."""
    final_eval_images: int | None = None
    """The same before and after training; default --eval-images."""
    eval_every: int = 5
    """Epochs between evaluations."""

    def resolved(self, recommended: dict[str, Any]) -> Self:
        """A copy in which every None that has a recommended value takes it."""
        missing = {k: v for k, v in recommended.items() if getattr(self, k, v) is None}
        return replace(self, **missing)


def check(config: FinetuneConfig) -> None:
    """Raise InputError on the first setting that cannot work."""
    from diffusion.errors import InputError

    positive = (
        "epochs prompts_per_epoch images_per_prompt inner_steps num_inference_steps lora_rank "
        "rollout_batch micro_batch learning_rate eval_images eval_every max_grad_norm"
    ).split()
    for name in positive:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise InputError(f"--{name.replace('_', '-')} must be positive, got {value}")
    if config.images_per_prompt is not None and config.images_per_prompt < 2:
        raise InputError(
            "--images-per-prompt 1 leaves nothing to compare: the loss is over pairs of images of "
            "one prompt; use 2 or more (8 is usual)"
        )
    if not 0 <= config.ema < 1:
        raise InputError(f"--ema must be in [0, 1), got {config.ema}")
