"""Every setting of offline-to-online training; light to import, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le

from genpol.agents.tuning_config import TUNERS, TuningConfig, usual_tuning
from offline.errors import InputError
from offline.learning.config import RLConfig
from offline.models.world_model_config import WorldModelConfig
from offline.ranges import Amount, Between, Decay, Few, Finite, NotNegative, Positive, Size

AgentName = Literal[
    "expo", "bestofn", "bc", "rlpd", "sac", "idql", "fql", "dsrl",
    "prdp", "grpo", "ddpo", "rtb", "prdp-forward", "nft", "awm",
]  # fmt: skip

RECORDED = "recorded"  # the --base of which a recording holds proposals


@dataclass(frozen=True)
class TrainConfig(RLConfig, WorldModelConfig, TuningConfig):
    """Settings of `genpol train`: of the backbone, world models, policies and agents."""

    agent: AgentName = "expo"
    """Algorithm. "expo" edits proposals of an expressive policy and takes the best of them all.
    "bestofn" is expo without edits. "bc" imitates all data and learns no values. "rlpd" trains a
    Gaussian policy with the same critic. "sac" is rlpd without data. "prdp", "grpo", "ddpo", "rtb",
    "prdp-forward", "nft" and "awm" fine-tune the base policy by reward, as `genpol finetune` does
    with image pipelines. docs/AGENTS.md explains these, "idql", "fql" and "dsrl"."""
    policy: Literal["diffusion", "flow"] = "flow"
    """Kind of the base policy. --base brings its own."""
    denoising_steps: Size = 10
    """Steps of the base policy's denoising chain (T), at least 1."""
    network: Literal["factored", "residual"] = "factored"
    """Network of the base policy. "factored" is narrow in the part that runs for every candidate
    and step. "residual" is the one published with EXPO: three residual blocks of 1024 units."""
    features: Size = 512
    """Units of the base policy's observation encoder, with --network factored."""
    width: Size = 64
    """Units of the base policy's part that runs for every candidate and step, with --network
    factored."""
    base_lr: NotNegative = 3e-4
    """Learning rate of the base policy. 0 freezes it."""
    base_ema: Decay = 0.999
    """Decay of the moving average of the base policy's weights, at least 0 and below 1. The average
    acts."""
    base_filter: Literal["all", "success"] = "all"
    """Episodes that the base policy imitates while training: all, or the successful ones."""
    pretrain_steps: Amount = 4_000
    """Steps in which the base policy clones --data before the first environment step. It clones
    nothing with --base."""
    critic_pretrain: Literal["none", "td", "calql", "iql"] = "none"
    """How the critic learns from --data before the first environment step: not at all, by its own
    TD loss, by Cal-QL, or by IQL."""
    critic_pretrain_steps: Amount = 0
    """Updates of --critic-pretrain."""

    num_candidates: Size = 8
    """Proposals of the base policy for each decision and each target (N), at least 1."""
    edits: Few = 1
    """Edits of each proposal. 0 makes expo the best of N."""
    edit_scale: Annotated[float, Gt(0), Le(2)] = 0.1
    """Largest change that an edit makes to an action normalised to [-1, 1] (beta), above 0 and at
    most 2."""
    adaptive_edit_scale: bool = False
    """Learn beta by the gradient of the value, between 0.01 and 1."""
    edit_scale_lr: Positive = 1e-4
    """Learning rate of beta, with --adaptive-edit-scale."""
    clip_edits: bool = True
    """Clip edited actions to [-1, 1]. The released code does not: edits are then scored, stored and
    handed to the environment beyond these bounds."""
    backup: Literal["plain", "fresh", "decoupled"] = "plain"
    """Critic heads that value the next action in a target: those that chose it (plain), another
    draw of heads as in the released code (fresh), or heads that had no part in the choice
    (decoupled)."""
    entropy_backup: bool = False
    """Subtract the edit's entropy term in the target, as in the paper. The released code does
    not."""
    edit_layer_norm: bool = True
    """Normalise the hidden layers of the edit policy (LayerNorm). The released code has none."""
    edit_entropy: Literal["unscaled", "released"] = "unscaled"
    """Entropy that the temperature holds at its target: of the edit before it is scaled by beta
    (unscaled), or after (released)."""
    init_temperature: Positive = 0.1
    """Entropy temperature at the start, in units of the reward, above 0."""
    target_entropy: Finite | None = None
    """Entropy that the temperature holds, in nats per decision. Default: -H * A / 2 for chunks of H
    actions of A numbers; 0 with --agent dsrl."""
    backup_uses_average: bool = False
    """Let the moving average of the base policy propose in targets. The newest weights propose
    otherwise, as in the released code."""
    act_select: Literal["argmax", "softmax"] = "argmax"
    """How acting chooses among candidates: the highest value, or a draw by softmax(value /
    --act-temperature)."""
    act_temperature: Positive = 1.0
    """Temperature of --act-select softmax, in units of the value, above 0."""

    candidates: Literal["chain", "two-step", "student", "noise-filter"] = "chain"
    """How targets get base candidates: by the whole chain, by a chain of two steps, by a one-step
    student of the chain, or by the chain from the best noises only (noise-filter)."""
    candidate_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the candidate chain in targets. Scores are always float32."""
    cache_age: Amount = 0
    """Updates for which the base candidates of a transition are reused. Edits and scores are always
    computed afresh. 0 reuses nothing. With a frozen base policy reuse costs variety alone."""

    expectile: Between = 0.7
    """Expectile of the state value, between 0 and 1 (idql)."""
    fql_alpha: NotNegative = 30.0
    """Weight of staying near the flow policy, against values scaled to a mean of 1 (fql). At 1 and
    below the student leaves the flow within a thousand steps."""
    noise_bound: Positive = 1.5
    """Largest absolute value of each number of the noise that the actor chooses, above 0 (dsrl)."""

    def check(self) -> None:
        """Check every number.

        Raises:
            InputError: names the option and the range it should be in.
        """
        RLConfig.check(self)
        WorldModelConfig.check(self)
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
    "edit_layer_norm": False,
    "actor_layer_norm": False,
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
    """The options of an agent that differ from the general defaults. `genpol train` and
    `Train.recommended` apply them."""
    settings = dict(SAC_USUAL) if agent == "sac" else {}
    if agent in TUNERS:
        settings = usual_tuning(agent)
    if agent == "sac" and (world_model != "none" or not data):
        settings["offline_fraction"] = 0.05 if data else 0.0
    if world_model != "none":
        settings |= SAC_IMAGINING if agent == "sac" else IMAGINING
    return settings


def with_preset(config: TrainConfig, preset: dict[str, Any], given: set[str]) -> TrainConfig:
    """`config` with the preset's values, but for the options named in `given`."""
    known = {f.name for f in fields(config)}
    return replace(config, **{k: v for k, v in preset.items() if k in known and k not in given})
