"""Recommended settings of fine-tuning, by model and objective; light to import."""

from __future__ import annotations

from collections.abc import Mapping
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
# Where an objective's constants differ from PRDP's: those of any model, of tiny, of flow models.
# The last are of SD3.5 Medium, from the configurations of Flow-GRPO (config/grpo.py and base.py:
# learning rate 3e-4, LoRA rank 32, groups of 24, beta 0.04, clip 1e-4) and of DiffusionNFT
# (config/nft.py: no guidance, 3e-4, rank 32, groups of 24). Both train with 10 steps and evaluate
# with 40; here --num-inference-steps is of both, so the pipeline's own default stays.
_LORA = {"learning_rate": 3e-4, "lora_rank": 32, "images_per_prompt": 24, "prompts_per_epoch": 48}
# Losses of the forward process are of the conditional network: it is drawn from, and trained,
# without guidance (DiffusionNFT, arXiv 2509.16117, section 4.1).
_PLAIN = {"guidance_scale": 1.0}
OBJECTIVE: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "prdp": ({}, {}, {}),
    "ddpo": ({}, {}, {}),
    "grpo": ({"kl_weight": 0.0}, {}, {**_LORA, "kl_weight": 0.04, "clip": 1e-4}),
    "rtb": ({}, {}, {}),
    "prdp-forward": ({"beta": 1.0, "clip": 0.1, "draws": 4, **_PLAIN}, {"beta": 0.3}, {}),
    "nft": ({"draws": 4, **_PLAIN}, {}, _LORA),
    "awm": ({"clip": 0.01, "kl_weight": 1.0, "draws": 4, **_PLAIN}, {}, {}),
    "dpo": ({"beta": 2000.0, "draws": 4, **_PLAIN}, {}, {}),
}
# Settings that a family, or an objective, has values of its own for.
BY_FAMILY = ("num_inference_steps", "guidance_scale")
BY_OBJECTIVE = tuple(
    sorted({name for sets in OBJECTIVE.values() for each in sets for name in each})
)


# Where pairs come from a file, nothing is drawn and no reward is needed. Those of tiny were run
# on 371 pairs with a tuning seed: more epochs gained no more. The others are untested.
PAIRS: tuple[dict[str, Any], dict[str, Any]] = (
    {
        "epochs": 1000,
        "prompts_per_epoch": 64,
        "learning_rate": 1e-5,
        "reward": None,
        "prompts": None,
    },
    {"epochs": 15, "prompts_per_epoch": 32, "learning_rate": 2e-4},
)


def recommended(
    model: str | None,
    algorithm: str,
    family: Mapping[str, Any] | None = None,
    *,
    pairs: bool = False,
) -> dict[str, Any]:
    """The recommended settings of a model under an objective.

    Published values give way to the family's, and those to the objective's. A guidance scale that
    is an input of the network is part of the model, and stays.

    Args:
        model: as given to --model.
        algorithm: the objective.
        family: of `diffusion.model_facts.ModelFacts.recommended`; None where it is not known.
        pairs: whether it learns from files of pairs.
    """
    tiny = model in (None, "tiny", "tiny-flow")
    common, small, flow = OBJECTIVE.get(algorithm, ({}, {}, {}))
    rest = {"kl_weight": 0.0, "draws": 4}
    if tiny:
        flow_model = {"model": "tiny-flow", "max_sequence_length": 1}
        found = rest | TINY | common | small | (flow_model if model == "tiny-flow" else {})
        return found | (PAIRS[0] | PAIRS[1] if pairs else {})
    known = dict(family or {})
    by_input, is_flow = known.pop("guided_by_input", False), known.pop("flow", False)
    own = common | (flow if is_flow else {})
    if by_input:
        own = {name: value for name, value in own.items() if name != "guidance_scale"}
    return rest | PUBLISHED | known | own | (PAIRS[0] if pairs else {})


def recommended_texts() -> dict[str, str]:
    """The recommended settings in words: "10 for tiny, 50 for other models".

    Where families or objectives differ, the words say so.
    """
    texts = {}
    for name, value in PUBLISHED.items():
        tiny = TINY[name]
        one, other = (f"{v:.12g}" if isinstance(v, float) else str(v) for v in (value, tiny))
        whose = [w for w, names in (("family", BY_FAMILY), ("objective", BY_OBJECTIVE))
                 if name in names]  # fmt: skip
        usual = f", unless the {' or '.join(whose)} has its own" if whose else ""
        texts[name] = one if value == tiny else f"{other} for tiny, {one} for other models{usual}"
        if value == tiny and usual:
            texts[name] = f"{one}{usual}"
    return texts
