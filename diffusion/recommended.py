"""Recommended settings of fine-tuning, by model and objective; light to import."""

from __future__ import annotations

from typing import Any

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
# Where an objective's constants differ from PRDP's: those of any model, and those of tiny.
OBJECTIVE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "prdp": ({}, {}),
    "ddpo": ({}, {}),
    "grpo": ({"kl_weight": 0.0}, {}),
    "rtb": ({}, {}),
    "prdp-forward": ({"beta": 1.0, "clip": 0.1, "draws": 4}, {"beta": 0.3}),
    "nft": ({"draws": 4}, {}),
    "awm": ({"clip": 0.01, "kl_weight": 1.0, "draws": 4}, {}),
    "dpo": ({"beta": 2000.0, "draws": 4}, {}),
}


def recommended(model: str | None, algorithm: str) -> dict[str, Any]:
    """The recommended settings of a model under an objective."""
    tiny = model in (None, "tiny", "tiny-flow")
    common, small = OBJECTIVE.get(algorithm, ({}, {}))
    flow = {"model": "tiny-flow", "max_sequence_length": 1} if model == "tiny-flow" else {}
    rest = {"kl_weight": 0.0, "draws": 4}
    return rest | (TINY if tiny else PUBLISHED) | common | (small if tiny else {}) | flow


def recommended_texts() -> dict[str, str]:
    """The recommended settings in words: "10 for tiny, 50 for other models"."""
    texts = {}
    for name, value in PUBLISHED.items():
        tiny = TINY[name]
        one, other = (f"{v:.12g}" if isinstance(v, float) else str(v) for v in (value, tiny))
        texts[name] = one if value == tiny else f"{other} for tiny, {one} for other models"
    return texts
