"""Agents by name: which components each is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch

from genpol.agents.bc import BC
from genpol.agents.config import TrainConfig
from genpol.agents.dsrl import DSRL
from genpol.agents.expo import EXPO
from genpol.agents.fql import FQL
from genpol.agents.from_value import FromValue
from genpol.agents.idql import IDQL
from genpol.agents.pretrain import pretrain
from genpol.agents.tuning_checks import require_value
from genpol.agents.tuning_config import TUNERS
from genpol.policies.architecture import Architecture
from genpol.policies.policy import ChunkPolicy
from offline.critics.penalties import lipschitz_bound, penalties
from offline.critics.value import ValueFunction
from offline.errors import InputError
from offline.learning.agent import Agent
from offline.learning.sac import SAC
from offline.networks.normalizer import ObsStats
from offline.spec import ActionSpec
from offline.types import Policy

__all__ = ["make_agent", "make_base", "make_value", "pretrain"]


def make_value(
    config: TrainConfig,
    spec: ActionSpec,
    obs_shapes: Mapping[str, tuple[int, ...]],
    env: str | None,
) -> ValueFunction:
    """A critic with stacked heads, of the sizes in `config`."""
    return ValueFunction(
        spec,
        obs_shapes,
        env=env,
        hidden=config.hidden,
        ensemble=config.value_ensemble,
        image_encoder=config.image_encoder,
        heads="stacked",
        critic_dtype=config.critic_dtype,
        lipschitz_bound=lipschitz_bound(config),
        layer_norm=config.layer_norm,
    )


def make_base(
    config: TrainConfig,
    spec: ActionSpec,
    obs_shapes: Mapping[str, tuple[int, ...]],
    env: str | None,
) -> ChunkPolicy:
    """A base policy that has learnt nothing yet."""
    return ChunkPolicy(
        "flow" if config.agent in ("fql", "dsrl") else config.policy,
        spec,
        obs_shapes,
        env=env,
        architecture=Architecture(
            features=config.features,
            width=config.width,
            denoising_steps=config.denoising_steps,
            image_encoder=config.image_encoder,
            network=config.network,
        ),
    )


def make_agent(
    config: TrainConfig,
    *,
    spec: ActionSpec,
    obs_shapes: Mapping[str, tuple[int, ...]],
    obs_stats: ObsStats | None,
    env: str | None,
    base: Policy | None = None,
    target_base: Policy | None = None,
    value: ValueFunction | None = None,
    offline_rows: int = 0,
    replay_slots: int = 0,
    device: str = "cpu",
) -> Agent:
    """The agent `config.agent`; the same seed gives the same weights.

    Args:
        config: its settings.
        spec: of the chunks, scaled to [-1, 1].
        obs_shapes: of each observation used.
        obs_stats: that observations are standardised by; None leaves them as they are.
        env: the environment's name.
        base: a pretrained policy to start from; any but ours stays frozen.
        target_base: see `EXPO`.
        value: a pretrained critic to start from.
        offline_rows, replay_slots: sizes of the dataset and of the replay, for caches by
            transition.
        device: where it learns.

    Raises:
        InputError: the agent cannot use such a base, or has to start from one.
    """
    with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
        torch.manual_seed(config.seed)
        if value is None:
            require_value(config.agent, False)
            value = make_value(config, spec, obs_shapes, env)
            if obs_stats is not None:
                value.encoder.normalizer.fit(obs_stats)
        value = value.to(device).train().requires_grad_(True)
        if config.agent in ("sac", "rlpd"):
            return _gaussian(config, value)
        if base is None:
            made = make_base(config, spec, obs_shapes, env).to(device)
            if obs_stats is not None:
                made.encoder.normalizer.fit(obs_stats)
            base = made
        elif isinstance(base, ChunkPolicy):
            base = base.to(device)
        if config.agent in ("expo", "bestofn"):
            settings = config if config.agent == "expo" else dataclasses.replace(config, edits=0)
            return EXPO(
                base,
                value,
                settings,
                target_base=target_base,
                offline_rows=offline_rows,
                replay_slots=replay_slots,
                penalty=penalties(config),
            )
        if config.agent in TUNERS:
            return FromValue(base, value, config)
        if not isinstance(base, ChunkPolicy):
            raise InputError(
                f"--agent {config.agent} needs a base policy of our own (genpol clone); with a "
                "black box use expo or bestofn"
            )
        if config.agent == "bc":
            return BC(base, value, config)
        makers: dict[str, Callable[..., Agent]] = {"idql": IDQL, "fql": FQL, "dsrl": DSRL}
        return makers[config.agent](base, value, config, penalty=penalties(config))


def _gaussian(config: TrainConfig, value: ValueFunction) -> SAC:
    """RLPD, or SAC as it is usually set up."""
    plain = config.agent == "sac"
    return SAC(
        value,
        config,
        init_temperature=config.init_temperature,
        target_entropy=config.target_entropy,
        entropy_backup=plain or config.entropy_backup,
        pool="min" if plain else "mean",
        penalty=penalties(config),
    )
