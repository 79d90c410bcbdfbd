"""`FromEpisodes`: a policy that is fine-tuned by what whole episodes came to, without a critic.

A group is the episodes of one layout. A chain is all decisions' denoising chains of an episode, of
which the log-ratios are summed:

    r(episode) = sum over decisions j and denoising steps t of log p(x_{j,t-1} | x_{j,t}, s_j)
                 - log p_ref(the same)

in which the environment's own part of an episode's probability drops out. With PRDP at beta the
policy that it tends to is, over episodes,

    pi(episode)  proportional to  pi_ref(episode) exp(R(episode) / beta)

The other objectives are the same code. `ddpo` and `grpo` are PPO on denoising steps (DPPO, arXiv
2409.00588, without its critic): every step of an episode has the episode's advantage, and counts
alike, so a longer episode has more of them. To divide by each episode's length instead would
strengthen short episodes, which are mostly the successful ones. The forward objectives see every
decision's finished chunk, at times and noises that `genpol.rounds.table.shared_draws` explains.

Shape legend: M episodes, N decisions of all, T denoising steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from diffusion.chain import DenoisingChain
from diffusion.forward import Draws
from diffusion.objective import Rollouts
from genpol.agents.config import TrainConfig
from genpol.agents.reward_tuning import MICRO_BATCH, RewardTuning
from genpol.policies.chains import PolicyChains
from genpol.rounds.play import Played
from genpol.rounds.table import EpisodeScores, by_episode, episode_weights, shared_draws
from offline.data.batch import Batch
from offline.learning.agent import AgentOfParts, Part
from offline.types import Policy


class FromEpisodes(AgentOfParts):
    """A `genpol.rounds.loop.RoundAgent`.

    Args:
        base: a diffusion or flow policy of our own.
        config: `agent` names the objective; see `TuningConfig`.

    Raises:
        InputError: the policy cannot be tuned so.
    """

    storage_dtype = torch.float32

    def __init__(self, base: Policy, config: TrainConfig) -> None:
        self.tuning = RewardTuning(base, config)
        self.config, self.base = config, self.tuning.base
        self.spec = self.base.average.spec
        said = {"objective": config.agent, "reward": config.reward, "beta": config.beta}
        self.base.average.meta["tuned"] = said

    # -- one round

    @property
    def chains(self) -> PolicyChains:
        """Of the policy that plays."""
        return self.tuning.chains

    @property
    def keeps_paths(self) -> bool:
        """Whether it scores denoising steps, and not finished chunks alone."""
        return not self.tuning.forward

    def playing(self) -> AbstractContextManager[Any]:
        """Within this context the weights that play are in place."""
        return self.tuning.drawing()

    def learn(
        self, played: Played, reward: Tensor, group: Tensor, names: list[str], round_: int
    ) -> dict[str, float]:
        """K optimiser steps on a round.

        Args:
            played: M episodes.
            reward, group: (M,).
            names: (M,) of each one's layout.
            round_: number of the round, by which it draws.

        Returns:
            kl/forward  KL of the policy that played from the policy as it was, in nats per decision
            kl/nats     the same by denoising steps, summed over an episode's decisions, where they
                        are scored
            and those of `RewardTuning.improve`
        """
        metrics = self._distances(played, round_)
        scores, rollouts = self.scored(played, reward, group, round_)
        metrics |= self.tuning.improve(scores, rollouts, names)
        tracker = getattr(self.tuning.objective, "tracker", None)
        if tracker is not None and self.config.layouts is None:
            tracker.seen.clear()  # of layouts that never come back
        return metrics

    def scored(
        self, played: Played, reward: Tensor, group: Tensor, round_: int
    ) -> tuple[EpisodeScores, Rollouts]:
        """How a round is scored again, and what the objective sees of it."""
        tuning, place, chain = self.tuning, played.place, played.chain
        draws: Draws | Generator = Generator()  # which denoising steps do not ask
        if tuning.forward:
            finished = self.chains.action(chain.sample.float()).flatten(1)  # as executed
            chain = DenoisingChain(finished[None], chain.log_prob)
            draws = shared_draws(
                self.chains.forward,
                place,
                group,
                tuning.objective.draws,
                self.chains.shape,
                self.config.seed,
                round_,
                self.chains.device,
            )
        each = torch.arange(len(chain.sample))
        alike = torch.zeros(len(each))  # decisions have no rewards of their own
        decisions, found = tuning.scored(chain, played.cond, each, alike, draws)
        weights = tuning.weights
        return EpisodeScores(decisions, place, len(weights)), Rollouts(
            by_episode(found.log_prob_old, place),
            by_episode(found.log_prob_ref, place),
            reward,
            group,
            episode_weights(place, weights),
            found.dimensions,
            scored_steps=int((weights > 0).sum()),
        )

    def _distances(self, played: Played, round_: int) -> dict[str, float]:
        """How far the policy that played is from the reference; fills in the reference's part of
        the chains."""
        tuning, chain = self.tuning, played.chain
        draw = Generator().manual_seed(round_)
        metrics = {"kl/forward": tuning.distance(chain, played.cond, draw)}
        if self.keeps_paths:
            refer(chain, self.chains, tuning.reference, played)
            assert chain.kl is not None
            kl = by_episode(chain.kl.cpu(), played.place).double().sum(1)
            metrics["kl/nats"] = float(kl.mean()) * chain.dimensions
        return metrics

    # -- an agent

    def update_critic(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """Nothing: there is no critic."""
        return {}

    def update_policy(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """Nothing: it learns from rounds."""
        return {}

    def acting(self) -> Policy:
        """The average policy, which samples."""
        return self.base.average

    def evaluating(self) -> Policy:
        """The same."""
        return self.base.average

    def parts(self) -> Mapping[str, Part]:
        """The policy with its reference and optimiser."""
        return {"tuning": self.tuning}

    def save(self, folder: Path) -> None:
        """Write policy/, the average; there is no value."""
        self.base.average.save(Path(folder) / "policy")


@torch.no_grad()
def refer(
    chain: DenoisingChain, chains: PolicyChains, reference: PolicyChains, played: Played
) -> None:
    """Set log_prob_ref and kl of a round's chains, many decisions at a time, once they are drawn.

    Args:
        chain: of N decisions.
        chains: that drew it, with the weights that they had then.
        reference: the policy as it was.
        played: with the conditions of these decisions.
    """
    process, count = chains.process, chain.x.shape[1]
    chain.log_prob_ref, chain.kl = (
        torch.zeros_like(chain.log_prob),
        torch.zeros_like(chain.log_prob),
    )
    for first in range(0, count, MICRO_BATCH):
        rows = torch.arange(first, min(first + MICRO_BATCH, count), device=chain.x.device)
        cond = {key: values[rows] for key, values in played.cond.items()}
        for t in process.stochastic.nonzero().flatten().tolist():
            x_t, x_prev, step = chain.step(rows, torch.full_like(rows, t))
            times = process.timesteps_at(step)
            mean, other = (
                process.mean(each.predict(x_t, times, cond), x_t, step)
                for each in (chains, reference)
            )
            chain.log_prob_ref[rows, t] = process.log_prob(x_prev, other, step)
            std = process.std_at(step, mean)
            chain.kl[rows, t] = ((mean - other) / std).square().flatten(1).mean(1) / 2
