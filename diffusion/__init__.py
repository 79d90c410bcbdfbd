"""Reward fine-tuning of image diffusion pipelines: chains, rewards, prompts, objectives."""

from __future__ import annotations

from importlib import import_module

from diffusion.waiting import wait_passively

wait_passively()  # before torch is loaded

# What users import, and the module that defines it. Nothing is imported before it is asked for, so
# that importing this package takes no time. `python -m scripts.public_surface` writes the stub
# beside this file and the list in docs/PYTHON.md.
_DEFINED_IN = {
    "load_pipeline": "diffusion.loading",
    "prepare_pipeline": "diffusion.loading",
    "load_lora": "diffusion.lora",
    "ImagePolicy": "diffusion.pipelines",
    "Family": "diffusion.families.family",
    "load_reward": "diffusion.rewards",
    "Reward": "diffusion.rewards.reward",
    "reward_function": "diffusion.rewards.callables",
    "load_prompts": "diffusion.prompts.sources",
    "PromptSource": "diffusion.prompts.sources",
    "Prompt": "diffusion.prompts.prompt",
    "Finetuner": "diffusion.finetune",
    "FinetuneConfig": "diffusion.config",
    "self_check": "diffusion.selfcheck",
    "Objective": "diffusion.objective",
    "Rollouts": "diffusion.objective",
    "PRDP": "diffusion.prdp",
    "two_pass_backward": "diffusion.two_pass",
    "ImageValue": "diffusion.values.image_value",
    "load_value": "diffusion.values.image_value",
    "forward_kl": "diffusion.guards.forward_kl",
    "policy_kl": "diffusion.guards.forward_kl",
    "InputError": "diffusion.errors",
    "RewardError": "diffusion.errors",
}
__all__ = [*_DEFINED_IN]


def __getattr__(name: str) -> object:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_DEFINED_IN[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_DEFINED_IN})
