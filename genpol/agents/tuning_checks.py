"""Checks of settings for agents that fine-tune the base policy by reward; light to import."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

from genpol.agents.config import AgentName, TrainConfig
from genpol.agents.tuning_config import TRAJECTORY, TUNERS, TuningConfig
from offline.errors import InputError

# What is of other agents: they edit, choose, train an actor or a critic, or imagine.
NOT_OF_TUNERS = (
    "edits", "edit_scale", "adaptive_edit_scale", "edit_scale_lr", "clip_edits", "edit_layer_norm",
    "edit_entropy", "init_temperature", "target_entropy", "act_select", "act_temperature",
    "candidates", "candidate_dtype", "cache_age", "backup_uses_average", "actor_layer_norm",
    "expectile", "fql_alpha", "noise_bound", "backup", "entropy_backup",
    "critic_pretrain", "critic_pretrain_steps", "world_model", "lipschitz", "value_diversity",
)  # fmt: skip


def check_tuning(config: TrainConfig) -> None:
    """Check what needs no loading, for any agent.

    Raises:
        InputError: names the option.
    """
    usual, agent = TrainConfig(), f"--agent {config.agent}"
    if config.agent not in get_args(AgentName):
        return  # one of the user's own, who knows what it takes
    if config.agent not in TUNERS:
        for name in (f.name for f in fields(TuningConfig)):
            if getattr(config, name) != getattr(usual, name):
                raise InputError(
                    f"{_flag(name)} is of agents that fine-tune the base policy by reward "
                    f"({', '.join(TUNERS)}), and {agent} does not: leave it out"
                )
        return
    for name in NOT_OF_TUNERS:
        if getattr(config, name) != getattr(usual, name):
            raise InputError(
                f"{_flag(name)} is of other agents: {agent} draws with the base policy alone, and "
                "trains neither an actor nor a critic. Leave it out"
            )
    if config.steps == 0 and config.offline_updates == 0:
        raise InputError(
            f"{agent} with --steps 0 would not train: pass --offline-updates, such as 2000"
        )
    quiet = config.sampler == "ode" or not config.noise_level
    if config.agent in TRAJECTORY and quiet and config.policy == "flow":
        given = "--sampler ode" if config.sampler == "ode" else "--noise-level 0"
        raise InputError(
            f"{agent} scores denoising steps, and with {given} a flow draws none that have a "
            "density: pass --sampler cps and a --noise-level above 0, or use --agent prdp-forward, "
            "nft or awm, which need none"
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def require_value(agent: str, given: bool) -> None:
    """Check that there is something to learn from.

    Raises:
        InputError: there is no critic, and the agent has no other reward.
    """
    if agent in TUNERS and not given:
        raise InputError(
            f"--agent {agent} learns from a value: pass --value, a folder of `genpol value`, or "
            "--steps above 0 to learn from episodes in --env"
        )
