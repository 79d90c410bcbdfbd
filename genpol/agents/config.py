"""Every setting of offline-to-online training; light to import, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from offline.errors import InputError
from offline.learning.config import RLConfig
from offline.models.world_model_config import WorldModelConfig
from offline.option_check import require

AgentName = Literal["expo", "bestofn", "bc", "rlpd", "sac", "idql", "fql", "dsrl"]


@dataclass(frozen=True)
class TrainConfig(RLConfig, WorldModelConfig):
    """Settings of `genpol train`: of the backbone, world models, policies and agents."""

    agent: AgentName = "expo"
    """"expo": an expressive policy, edits of its proposals, and the best of them all. "bestofn":
    the same without edits. "bc": imitation alone, of all data. "rlpd": a Gaussian policy on the
    same critic. "sac": the same without data. "idql", "fql", "dsrl": see docs/AGENTS.md."""
    policy: Literal["diffusion", "flow"] = "flow"
    """The base policy, unless --base brings one."""
    denoising_steps: int = 10
    """Steps of its chain (T)."""
    network: Literal["factored", "residual"] = "factored"
    """"factored": narrow where it runs for every candidate and step; "residual": as published with
    EXPO, three residual blocks of 1024."""
    features: int = 512
    """Width of the base policy's observation encoder (factored)."""
    width: int = 64
    """Width of the part that runs for every candidate and step (factored)."""
    base_lr: float = 3e-4
    """Learning rate of the base policy; 0 freezes it."""
    base_ema: float = 0.999
    """Decay of the average of its weights, which acts."""
    base_filter: Literal["all", "success"] = "all"
    """What the base policy imitates while training: everything, or only what succeeded."""
    pretrain_steps: int = 4_000
    """Steps of cloning --data before the first environment step; none with --base."""
    critic_pretrain: Literal["none", "td", "calql", "iql"] = "none"
    """How the critic learns from --data before the first environment step."""
    critic_pretrain_steps: int = 0
    """For how many steps."""

    num_candidates: int = 8
    """Samples of the base policy for each decision and each target (N)."""
    edits: int = 1
    """Edits of each sample; 0 is best-of-N."""
    edit_scale: float = 0.1
    """How far an edit can move a normalised action (beta)."""
    adaptive_edit_scale: bool = False
    """Learn beta by the gradient of the value, within .01 and 1."""
    edit_scale_lr: float = 1e-4
    """Learning rate of beta."""
    clip_edits: bool = True
    """Clip edited actions to [-1, 1]; the released code does not."""
    backup: Literal["plain", "fresh", "decoupled"] = "plain"
    """Who values the best next action: "plain" the heads that chose it, "fresh" another draw of
    heads (the released code), "decoupled" heads that had no part in the choice."""
    entropy_backup: bool = False
    """Subtract the edit's entropy term in the target (the paper; the released code does not)."""
    edit_entropy: Literal["unscaled", "released"] = "unscaled"
    """Entropy that the temperature holds: of the edit before scaling by beta, or after it."""
    init_temperature: float = 0.1
    """Initial entropy temperature, in units of the reward."""
    target_entropy: float | None = None
    """Default -H A / 2, for dsrl 0."""
    backup_uses_average: bool = False
    """Targets propose with the average of the base policy; the released code's uses the newest."""
    act_select: Literal["argmax", "softmax"] = "argmax"
    """How acting chooses among candidates."""
    act_temperature: float = 1.0
    """Of softmax."""

    candidates: Literal["chain", "two-step", "student", "noise-filter"] = "chain"
    """Where targets get base candidates from: the whole chain, a chain of two steps, a one-step
    student of the chain, or a chain for the best of the noises only."""
    candidate_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the candidate chain; scores are always float32."""
    cache_age: int = 0
    """Reuse a transition's base candidates for this many updates; edits and scores stay fresh.
    0 is off. Free with a frozen base policy."""

    expectile: float = 0.7
    """Of the state value (idql)."""
    fql_alpha: float = 30.0
    """Weight of staying near the flow (fql), against values scaled to a mean of 1. At 1 and below
    the student leaves the flow within a thousand steps."""
    noise_bound: float = 1.5
    """Noise that the actor may choose lies within (dsrl)."""

    def check(self) -> None:
        """Check every number.

        Raises:
            InputError: names the option and the range it should be in.
        """
        RLConfig.check(self)
        WorldModelConfig.check(self)
        for name in ("denoising_steps", "num_candidates", "features", "width"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("base_lr", "pretrain_steps", "critic_pretrain_steps", "edits", "cache_age"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("init_temperature", "edit_scale_lr", "act_temperature", "noise_bound"):
            require(self, name, getattr(self, name) > 0, "above 0")
        require(self, "edit_scale", 0 < self.edit_scale <= 2, "above 0 and at most 2")
        require(self, "base_ema", 0 <= self.base_ema < 1, "at least 0 and below 1")
        require(self, "expectile", 0 < self.expectile < 1, "between 0 and 1")
        if self.critic_pretrain_steps and self.critic_pretrain == "none":
            raise InputError(
                "--critic-pretrain-steps needs to know how: pass --critic-pretrain td, calql or iql"
            )


# What the released code does; for comparison, and for `genpol bench expo --preset faithful`.
FAITHFUL: dict[str, Any] = {
    "policy": "diffusion",
    "network": "residual",
    "denoising_steps": 10,
    "num_candidates": 8,
    "edits": 1,
    "clip_edits": False,
    "backup": "fresh",
    "edit_entropy": "released",
    "init_temperature": 1.0,
    "backup_uses_average": False,
    "action_chunk": 1,
    "utd": 20.0,
    "value_ensemble": 10,
    "subset": 2,
    "hidden": (256, 256, 256),
    "candidates": "chain",
    "cache_age": 0,
}


# SAC as it is usually set up, on the environment's own rewards, and with a world model as in MBPO
# (arXiv 1906.08253), with half its updates per step; what the others take with a world model.
SAC_USUAL: dict[str, Any] = {
    "action_chunk": 1,
    "pretrain_steps": 0,
    "reward": "dataset",
    "value_ensemble": 2,
    "hidden": (256, 256),
    "start_steps": 1_000,
    "update_after": 1_000,
}
SAC_IMAGINING: dict[str, Any] = {
    "imagined_fraction": 0.95,
    "utd": 10.0,
    "policy_utd": 10.0,
}
IMAGINING: dict[str, Any] = {"imagined_fraction": 0.25, "rollouts_per_step": 10}


def usual(agent: str, world_model: str = "none", *, data: bool = False) -> dict[str, Any]:
    """The options of an agent that differ from the general defaults. `genpol train` applies them;
    in Python pass Train(**usual("sac") | options)."""
    settings = dict(SAC_USUAL) if agent == "sac" else {}
    if agent == "sac" and (world_model != "none" or not data):
        settings["offline_fraction"] = 0.05 if data else 0.0
    if world_model != "none":
        settings |= SAC_IMAGINING if agent == "sac" else IMAGINING
    return settings


def with_preset(config: TrainConfig, preset: dict[str, Any], given: set[str]) -> TrainConfig:
    """`config` with the preset's values, but for the options named in `given`."""
    known = {f.name for f in fields(config)}
    return replace(config, **{k: v for k, v in preset.items() if k in known and k not in given})
