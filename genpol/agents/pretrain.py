"""What an agent learns from the dataset before its first environment step.

The base policy clones it (`pretrain_steps`), with the loss it goes on imitating by; RLPD's Gaussian
actor does the same. Then the critic learns from it (`critic_pretrain_steps`):

    td           the agent's own targets, on the dataset alone
    calql, iql   `offline.critics.calql`, `offline.critics.iql`; the agent's updates go on from
                 their target critic
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from genpol.agents.config import TrainConfig
from genpol.agents.imitation import Imitation
from offline.critics.calql import CalQL
from offline.critics.iql import IQL
from offline.critics.td import TDCritic
from offline.critics.value_config import ValueConfig
from offline.data.batch import Batch, shifted
from offline.data.mixed_transitions import Data
from offline.errors import Diverged
from offline.learning.agent import Agent

Log = Callable[[int, dict[str, float]], None]
Stop = Callable[[], bool]
Learn = Callable[[Batch, Generator], dict[str, Tensor]]


@runtime_checkable
class HasPretrain(Protocol):
    """An agent with a way of its own to clone a dataset."""

    def pretrain(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step; scalars to log."""


def pretrain(
    agent: Agent,
    data: Data,
    config: TrainConfig,
    log: Log | None = None,
    stop: Stop | None = None,
    *,
    clone: bool = True,
    device: str = "cpu",
) -> None:
    """Clone, then train the critic; the same seed gives the same weights.

    Args:
        agent: as `make_agent` made it.
        data: the dataset's transitions.
        config: says for how long, and how.
        log: called with the gradient step and its metrics, averaged since the last call; names
            are those of the agent under "pretrain/".
        stop: asked at every step whether to leave early.
        clone: off where the base policy is trained already.
        device: where the agent learns.

    Raises:
        Diverged: a mean loss is not finite.
    """
    phases: list[tuple[int, Callable[[Generator], dict[str, Tensor]]]] = []
    draw = Generator().manual_seed(config.seed + 20)

    def batch() -> Batch:
        return shifted(data.sample(config.batch_size, draw), config.random_shift, draw).to(device)

    # FQL's student, which acts, has to learn a base policy that is trained already, too.
    learner = _cloner(agent) if clone else getattr(agent, "distill", None)
    if learner is not None:
        learn_base = learner
        phases.append((config.pretrain_steps, lambda noise: learn_base(batch(), noise)))
    critic = getattr(agent, "critic", None)
    done: Callable[[], None] | None = None
    if isinstance(critic, TDCritic) and config.critic_pretrain != "none":
        update, done = _critic(agent, critic, config)
        phases.append((config.critic_pretrain_steps, lambda noise: update(batch(), noise)))

    noise = Generator().manual_seed(config.seed + 21)
    step, sums, count = 0, dict[str, Tensor](), 0
    for steps, learn in phases:
        for _ in range(steps):
            if stop and stop():
                return
            metrics = learn(noise)
            sums = {key: sums.get(key, 0) + number.detach() for key, number in metrics.items()}
            count, step = count + 1, step + 1
            if count == 100:
                means = {f"pretrain/{key}": float(total) / count for key, total in sums.items()}
                if wrong := [key for key, number in means.items() if not math.isfinite(number)]:
                    raise Diverged(
                        f"pretraining diverged at step {step}: {wrong[0]} is NaN or infinite. "
                        "Lower --lr or --base-lr"
                    )
                if log:
                    log(step, means)
                sums, count = {}, 0
        sums, count = {}, 0
    if done is not None:
        done()


def _cloner(agent: Agent) -> Learn | None:
    """One step of cloning by whatever the agent imitates with."""
    if isinstance(agent, HasPretrain):
        return agent.pretrain
    base = getattr(agent, "base", None)
    return base.update if isinstance(base, Imitation) and not base.frozen else None


def _critic(
    agent: Agent, critic: TDCritic, config: TrainConfig
) -> tuple[Learn, Callable[[], None] | None]:
    """A step of the critic's pretraining, and what is left to do after the last one."""
    if config.critic_pretrain == "td":
        return agent.update_critic, None
    # Only for unscaled sparse rewards are the bounds of the value those that Cal-QL clips to.
    plain = config.reward == "sparse" and config.reward_scale == 1
    settings = ValueConfig(
        critic="calql" if config.critic_pretrain == "calql" else "iql",
        steps=max(1, config.critic_pretrain_steps),
        batch_size=config.batch_size,
        action_chunk=config.action_chunk,
        discount=config.discount,
        lr=config.lr,
        ensemble=config.value_ensemble,
        hidden=config.hidden,
        expectile=config.expectile,
        reward="sparse" if plain else "dataset",
        seed=config.seed,
    )
    scratch = copy.deepcopy(critic.value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 22)
        learner = (CalQL if config.critic_pretrain == "calql" else IQL)(scratch, settings)

    def adopt() -> None:
        weights = learner.target.state_dict()
        critic.value.load_state_dict(weights)
        critic.target.load_state_dict(weights)

    return learner.update, adopt
