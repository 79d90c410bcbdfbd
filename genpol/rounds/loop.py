"""`Rounds`: the loop of agents that learn from whole episodes of their own, round by round.

    G layouts, B episodes of each -> reward of each episode -> K steps -> all of it is forgotten

It has the interface of `offline.learning.loop.Loop`, so that a session evaluates, saves, resumes
and reports it as it does any other. Progress is counted in environment steps, too.

Everything random is a function of the seed, the round and the episode. So a round that a signal
stops is dropped, and played again from its start by whoever goes on: the run stays what it would
have been. Only whole rounds count as progress, and nothing of one is kept for the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from torch import Tensor

from diffusion.streams import ROLLOUT, generators
from genpol.agents.config import TrainConfig
from genpol.policies.chains import PolicyChains
from genpol.rounds.play import Outcome, Played, Start, play
from offline.data.tables import Table
from offline.errors import InputError
from offline.learning.agent import Agent
from offline.learning.loop import Imagines
from offline.learning.running_episodes import VectorEnv

Log = Callable[[int, dict[str, float]], None]
Stop = Callable[[], bool]
TIRED = 5  # rounds in a row without a difference to learn from, after which it is said


class RoundAgent(Agent, Protocol):
    """An agent that learns from rounds."""

    storage_dtype: torch.dtype
    """That chains are stored in."""

    @property
    def chains(self) -> PolicyChains:
        """Of the policy that plays."""

    @property
    def keeps_paths(self) -> bool:
        """Whether it scores denoising steps, and not finished chunks alone."""

    def playing(self) -> AbstractContextManager[Any]:
        """Within this context the weights that play are in place."""

    def learn(
        self, played: Played, reward: Tensor, group: Tensor, names: list[str], round_: int
    ) -> dict[str, float]:
        """K optimiser steps on a round; numbers to log.

        Args:
            played: M episodes.
            reward: (M,) of each.
            group: (M,) number of its layout within the round.
            names: (M,) of its layout, the same whenever that comes back.
            round_: number of the round, by which it draws.
        """


class _Saved(BaseModel):
    """What kind of thing each entry of a saved state is."""

    model_config = ConfigDict(strict=True, extra="forbid")

    agent: dict[str, Any]
    counts: list[NonNegativeInt] = Field(min_length=4, max_length=4)
    rounds: NonNegativeInt
    tired: NonNegativeInt


class Rounds:
    """The loop of an on-policy agent; `run` goes on with it.

    Args:
        agent: what learns.
        envs: environments side by side, with Dict observations and info["success"].
        config: sizes, reward and seed.
        layouts: number of a layout -> seed of its reset.
        limit: steps after which an episode is cut off.
        say: told what a user should know.

    Raises:
        InputError: sizes that do not go together.
    """

    imagination: Imagines | None = None
    learnt = 0
    """No update is made without an environment step."""

    def __init__(
        self,
        agent: RoundAgent,
        envs: VectorEnv,
        config: TrainConfig,
        *,
        layouts: Callable[[int], int],
        limit: int,
        say: Callable[[str], None] = print,
    ) -> None:
        require_rounds(config, limit)
        self.agent, self.envs, self.config = agent, envs, config
        self.layouts, self.limit, self.say = layouts, limit, say
        self.step = self.updates = self.episodes = self.successes = 0
        """Environment steps, optimiser steps, episodes and successes so far."""
        self.rounds = 0
        self._tired = 0  # rounds in a row in which the episodes of every layout got the same

    @property
    def progress(self) -> int:
        """Environment steps."""
        return self.step

    def tables(self) -> Mapping[str, Table]:
        """None: there is no replay."""
        return {}

    def run(self, until: int, *, log: Log | None = None, stop: Stop | None = None) -> None:
        """Play and learn from rounds until `until` environment steps are done, or `stop` says so.

        Args:
            until: total of steps. The round that reaches it is finished.
            log: called with `progress` and the metrics of every round.
            stop: asked at every step. A round that it stops counts for nothing.

        Raises:
            Diverged: a loss, the weights or the policy's actions are not finite.
        """
        while self.step < until and not (stop and stop()):
            metrics = self._round(stop)
            if metrics is None:
                return
            if log:
                log(self.progress, metrics)

    def learn(self, until: int, *, log: Log | None = None, stop: Stop | None = None) -> None:
        """Nothing: it learns from episodes alone."""

    def _round(self, stop: Stop | None) -> dict[str, float] | None:
        """The metrics of one round; None if it was stopped."""
        config, started = self.config, time.perf_counter()
        size = config.group_size
        numbers = [self._layout(g) for g in range(config.groups)]
        noise = generators(config.seed, ROLLOUT, self.rounds, range(len(numbers) * size))
        starts = [Start(self.layouts(numbers[m // size]), stream) for m, stream in enumerate(noise)]
        with self.agent.playing():
            played = play(
                self.envs,
                self.agent.chains,
                starts,
                dtype=self.agent.storage_dtype,
                path=self.agent.keeps_paths,
                stop=stop,
            )
        if played is None:
            return None
        group = torch.arange(len(numbers)).repeat_interleave(size)
        reward = torch.tensor([self._reward(e) for e in played.episodes], dtype=torch.float64)
        names = [f"layout {numbers[g]}" for g in group.tolist()]
        rolled_out = time.perf_counter() - started
        metrics = self.agent.learn(played, reward, group, names, self.rounds)
        self.updates += config.inner_steps
        self.step += played.steps
        self.rounds += 1
        self.episodes += len(starts)
        self.successes += sum(episode.success for episode in played.episodes)
        tied = tied_groups(reward, group)
        self._notice(tied == 1 and not all(e.success for e in played.episodes))
        return metrics | {
            "train/return": float(np.mean([e.returned for e in played.episodes])),
            "train/success": float(np.mean([e.success for e in played.episodes])),
            "train/length": float(np.mean([e.length for e in played.episodes])),
            "train/episodes": float(self.episodes),
            "train/updates": float(self.updates),
            "reward/mean": float(reward.mean()),
            "reward/spread": spread(reward, group),
            "round/tied": tied,
            "round/decisions": float(played.chain.x.shape[1]),
            "round/megabytes": megabytes(played),
            "time/rollout_share": rolled_out / (time.perf_counter() - started),
        }

    def _layout(self, group: int) -> int:
        """The number of a layout of the present round."""
        number = self.rounds * self.config.groups + group
        return number if self.config.layouts is None else number % self.config.layouts

    def _reward(self, episode: Outcome) -> float:
        """Of a whole episode."""
        kind = self.config.reward
        if kind == "dataset":
            plain = episode.returned
        elif kind == "zero-one":
            plain = float(episode.success)
        else:
            plain = -float(episode.length - 1 if episode.success else self.limit)
        return self.config.reward_scale * plain

    def _notice(self, idle: bool) -> None:
        """Say so when some rounds have had nothing to tell episodes apart by, short of success."""
        self._tired = self._tired + 1 if idle else 0
        if self._tired and self._tired % TIRED == 0:
            self.say(
                f"warning: in each of the last {self._tired} rounds all episodes of a layout got "
                "the same reward, so there was little to learn from: start from a --base that "
                "succeeds now and then, raise --group-size, or pass a denser --reward (sparse, "
                "dataset)"
            )

    # -- resuming

    def tree(self) -> dict[str, Any]:
        """Everything that `run` goes on from, as tensors, numbers, lists and dicts."""
        return {
            "agent": self.agent.state_dict(),
            "counts": [self.step, self.updates, self.episodes, self.successes],
            "rounds": self.rounds,
            "tired": self._tired,
        }

    def take_on(self, tree: Mapping[str, Any]) -> list[int]:
        """Go on from what `tree` returned.

        Returns:
            Environments whose episode came out differently: none, as none is running.

        Raises:
            ValueError: an entry is missing, or another kind of thing.
        """
        saved = _Saved.model_validate(dict(tree))
        self.agent.load_state_dict(saved.agent)
        self.step, self.updates, self.episodes, self.successes = saved.counts
        self.rounds, self._tired = saved.rounds, saved.tired
        return []


def require_rounds(config: TrainConfig, limit: int | None = None) -> None:
    """Check that a run's sizes go together.

    Args:
        config: of the run.
        limit: steps after which an episode is cut off; None where it is not known yet.

    Raises:
        InputError: names the option.
    """
    episodes = config.groups * config.group_size
    each = f"{config.groups} x {config.group_size} episodes of a round (--groups, --group-size)"
    if config.layouts is not None and config.layouts < config.groups:
        raise InputError(
            f"--layouts {config.layouts} is fewer than the --groups {config.groups} of a round, "
            "which are different layouts: raise --layouts or lower --groups"
        )
    if config.num_envs > episodes:
        raise InputError(
            f"--num-envs {config.num_envs} is more than the {each}, so that some would never act: "
            f"pass at most {episodes}"
        )
    if limit is not None and config.steps < episodes * limit:
        raise InputError(
            f"--steps {config.steps} may be fewer than one round: the {each} may take {limit} "
            f"steps each. Pass --steps {episodes * limit} or more, or smaller rounds"
        )


def tied_groups(reward: Tensor, group: Tensor) -> float:
    """Share of groups whose rewards (M,) are all equal."""
    ids = group.unique()
    return sum(bool((reward[group == i] == reward[group == i][0]).all()) for i in ids) / len(ids)


def spread(reward: Tensor, group: Tensor) -> float:
    """Mean over groups of the standard deviation of their rewards (M,)."""
    return float(np.mean([float(reward[group == i].std()) for i in group.unique()]))


def megabytes(played: Played) -> float:
    """Of chains and conditions, in 2^20 bytes."""
    chain = played.chain
    tensors = [chain.x, chain.log_prob, *played.cond.values()]
    return sum(t.numel() * t.element_size() for t in tensors) / 2**20
