"""What a LoRA's file says of the run that made it, to people and programs that get the file alone.

Two conventions: `modelspec.*` is Stability's ModelSpec 1.0.0, and `ss_*` is what kohya's trainers
write. Nothing here depends on when or where the run was made, so that equal runs leave equal files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from genpol import __version__

if TYPE_CHECKING:
    from diffusion.finetune import Finetuner

# What kohya's trainers call an architecture.
_BASE_VERSIONS = {
    "stable-diffusion-v1": "sd_v1",
    "stable-diffusion-v2": "sd_v2",
    "stable-diffusion-xl-v1-base": "sdxl_base_v1-0",
    "stable-diffusion-3": "sd3",
    "flux-1-dev": "flux1",
}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
_LONGEST = 200  # characters of a prompt


def about_run(tuner: Finetuner, *, model: str, reward: str) -> dict[str, str]:
    """Metadata of a run's LoRA, but for its steps, which grow.

    Args:
        tuner: the run.
        model: the pipeline as the user names it; of a folder, the last part counts.
        reward: the reward's expression; of what it names, folders and servers are left out.
    """
    config, policy = tuner.config, tuner.policy
    base = Path(model).name if Path(model).exists() else model
    scored = re.sub(r"[^\s*+@(,]*/", "", reward)
    architecture = policy.family.architecture or type(policy.pipe).__name__
    prompt = str(tuner.prompts.train(0, 1, config.seed)[0])[:_LONGEST]
    how = f"{config.algorithm} on the reward {scored}"
    facts = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"{base}, {how}",
        "modelspec.description": f"LoRA of {base}, fine-tuned by {how} with genpol {__version__}",
        "modelspec.trigger_phrase": "",
        "modelspec.usage_hint": f"No trigger word. Trained on prompts such as: {prompt}",
        "modelspec.resolution": f"{policy.family.width}x{policy.family.height}",
        "ss_sd_model_name": base,
        "ss_base_model_version": _BASE_VERSIONS.get(architecture, architecture),
        "ss_v2": str(architecture == "stable-diffusion-v2"),
        "ss_learning_rate": repr(config.learning_rate),
        "ss_seed": str(config.seed),
        "ss_num_epochs": str(config.epochs),
        "ss_training_comment": how,
        "genpol.reward": scored,
        "genpol.algorithm": config.algorithm,
        "genpol.version": __version__,
    }
    kind = policy.pipe.scheduler.config.get("prediction_type")
    if not policy.family.flow and kind in _PREDICTIONS:
        facts["modelspec.prediction_type"] = _PREDICTIONS[kind]
    return facts
