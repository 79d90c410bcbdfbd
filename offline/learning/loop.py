"""The offline-to-online loop, one for every agent.

    decide (every H steps of an environment) -> execute -> store -> utd updates of the critic,
    one of the policy -> next step

Experience goes into the replay; batches come from the mixture, which holds the replay beside the
dataset and what a world model imagines. The loop knows neither where environments come from nor
what the agent is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from offline.data.batch import Batch, shifted
from offline.data.dataset_training import set_stream
from offline.data.mixture import Mixture
from offline.data.replay import Replay, ReplaySnapshot
from offline.data.returns import online_reward
from offline.data.tables import Table
from offline.errors import Diverged
from offline.finite import LOWER, total
from offline.learning.agent import Agent
from offline.learning.config import RLConfig
from offline.learning.running_episodes import Running, VectorEnv, copied, differing, play_again
from offline.learning.snapshot import LoopSnapshot
from offline.learning.statistics import FollowingStatistics
from offline.types import clips

Log = Callable[[int, dict[str, float]], None]
Stop = Callable[[], bool]


class Imagines(Protocol):
    """A source of the mixture that follows the training; see `offline.models.imagination`."""

    def advance(self, step: int) -> dict[str, float]:
        """Called before the updates of a step; numbers to log, if there is something new."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Loop:
    """The loop that acts, stores and learns; `run` goes on with it.

    Args:
        agent: what learns.
        envs: environments side by side, with Dict observations and info["success"].
        mixture: what batches are drawn from.
        replay: where experience goes; one of the mixture's sources.
        config: rates and sizes.
        layouts: number of an episode -> seed of its reset.
        device: where the agent learns; batches are moved there.
        imagination: imagines more to learn from; one of the mixture's sources.
        follow_statistics: let the agent's statistics of observations follow the replay; see
            `offline.learning.statistics`.
    """

    def __init__(
        self,
        agent: Agent,
        envs: VectorEnv,
        mixture: Mixture,
        replay: Replay,
        config: RLConfig,
        *,
        layouts: Callable[[int], int],
        device: str = "cpu",
        imagination: Imagines | None = None,
        follow_statistics: bool = False,
    ) -> None:
        self.agent, self.envs, self.mixture = agent, envs, mixture
        self.imagination = imagination
        self.replay, self.config, self.layouts = replay, config, layouts
        self.statistics = FollowingStatistics(agent, replay) if follow_statistics else None
        self.step = self.updates = self.episodes = self.successes = 0
        """Environment steps, critic updates, episodes and successes so far."""
        self.learnt = 0
        """Of the critic updates, those of `learn`."""
        self._act = Generator().manual_seed(config.seed + 10)
        self._draw = Generator().manual_seed(config.seed + 11)
        self._learn, self._device = Generator().manual_seed(config.seed + 12), device
        self._waits = torch.device(device).type != "cpu"  # to read a loss is to wait for it there
        self._due = self._policy_due = 0.0
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._imagined: dict[str, float] = {}  # news of the imagination
        self._ended: list[tuple[float, bool, int]] = []  # return, success, length
        self._running: list[Running] = []
        self._started = 0  # episodes begun
        self._obs: dict[str, np.ndarray] = {}

    @property
    def progress(self) -> int:
        """Environment steps, and the updates made without any, which come first."""
        return self.learnt + self.step

    def run(self, until: int, *, log: Log | None = None, stop: Stop | None = None) -> None:
        """Go on until `until` environment steps are done, or `stop` says so.

        Args:
            until: total of steps, over all environments and earlier calls.
            log: called with `progress` and the metrics since, every `log_every` steps.
            stop: asked at every step.

        Raises:
            Diverged: a loss or the policy's actions are not finite.
        """
        if not self._running:
            self._begin()
        count, every = self.envs.num_envs, self.config.log_every
        while self.step < until and not (stop and stop()):
            before = self.step
            self._interact()
            if self.statistics is not None:
                self.statistics.advance(self.step)
            self._update(count)
            due = log is not None and self.step // every > before // every
            if due or not self._waits:
                self._require_finite()
            if log and due:
                log(self.progress, self._take_metrics())
        self._require_finite()

    def learn(self, until: int, *, log: Log | None = None, stop: Stop | None = None) -> None:
        """Update critic and policy once each, without an environment step, `until` times in all.

        Args:
            until: total of updates, over all calls; to the imagination each is a step.
            log: called with the updates so far and their metrics, every `log_every` of them.
            stop: asked before every update.

        Raises:
            InputError: there is nothing to learn from.
            Diverged: a loss is not finite.
        """
        while self.learnt < until and not (stop and stop()):
            self._imagine()
            self._add(self.agent.update_policy(self._update_critic(), self._learn))
            self.learnt += 1
            due = log is not None and self.learnt % self.config.log_every == 0
            if due or not self._waits:
                self._require_finite()
            if log and due:
                log(self.learnt, self._take_metrics())
        self._require_finite()

    # -- acting

    def _begin(self) -> None:
        count = self.envs.num_envs
        self._running = [Running(self.layouts(i)) for i in range(count)]
        self._obs = copied(self.envs.reset(seed=[r.seed for r in self._running])[0])
        self.agent.acting().reset()
        self._started = count

    def _interact(self) -> None:
        """One step of every environment."""
        self._decide()
        raw = np.stack([running.queue.popleft() for running in self._running])
        obs, rewards, terminated, truncated, info = self.envs.step(raw)
        obs = copied(obs)
        successes = np.asarray(info.get("success", np.zeros(len(raw), bool)), bool)
        act = self.agent.spec.normalize(raw)
        over = np.zeros(len(raw), bool)
        for i, running in enumerate(self._running):
            running.actions.append(raw[i])
            running.returned += float(rewards[i])
            success = bool(successes[i])
            ended = bool(terminated[i]) or success
            over[i] = ended or bool(truncated[i])
            reward = online_reward(
                self.config.reward,
                float(rewards[i]),
                success,
                terminated=bool(terminated[i]),
                discount=self.config.discount,
            )
            self.replay.add(
                i,
                {key: values[i] for key, values in self._obs.items()},
                act[i],
                self.config.reward_scale * reward,
                {key: values[i] for key, values in obs.items()},
                ended,
                bool(over[i]) and not ended,
                success=success,
            )
            if over[i]:
                self._ended.append((running.returned, success, len(running.actions)))
                self.successes += success
        self._obs = obs
        self.step += len(raw)
        if over.any():
            self._restart(over)

    def _decide(self) -> None:
        """New chunks for those that have executed theirs."""
        rows = [i for i, running in enumerate(self._running) if not running.queue]
        if not rows:
            return
        spec, random = self.agent.spec, self.step < self.config.start_steps
        if random:
            shape = (len(rows), spec.chunk, spec.dim)
            act = 2 * torch.rand(shape, generator=self._act) - 1
        else:
            obs = {key: torch.from_numpy(values[rows]) for key, values in self._obs.items()}
            policy = self.agent.acting()
            act = policy.sample(obs, 1, self._act)[:, 0].cpu()
            policy.commit(act)
        if not torch.isfinite(act).all():
            raise Diverged(
                f"the policy gave NaN or infinite actions at step {self.progress}, so training has "
                f"diverged. {LOWER}"
            )
        raw = spec.unnormalize(act.float())
        raw = (spec.clip(raw) if clips(self.agent.acting()) else raw).numpy()
        for row, chunk in zip(rows, raw, strict=True):
            self._running[row].queue.extend(chunk)

    def _restart(self, over: np.ndarray) -> None:
        seeds: list[int | None] = [None] * len(over)
        for i in np.flatnonzero(over):
            self._running[i] = Running(self.layouts(self._started))
            seeds[i] = self._running[i].seed
            self._started += 1
            self.episodes += 1
        # Environments that go on need no seed, but the interface asks for one number each.
        filled = [0 if seed is None else seed for seed in seeds]
        obs, _ = self.envs.reset(seed=filled, options={"reset_mask": over})
        self._obs = copied(obs)
        if self.envs.num_envs == 1:  # only then may a policy remember its episode
            self.agent.acting().reset()

    # -- learning

    def _update(self, steps: int) -> None:
        """The updates that `steps` environment steps call for."""
        config = self.config
        if self.step <= max(config.update_after, config.start_steps):
            return
        self._imagine()
        if not len(self.mixture):
            return
        self._due += steps * config.utd
        while self._due >= 1 - 1e-9:
            self._due -= 1
            batch = self._update_critic()
            self._policy_due += min(config.policy_utd / config.utd, 1.0)
            if self._policy_due >= 1 - 1e-9:
                self._policy_due -= 1
                self._add(self.agent.update_policy(batch, self._learn))

    def _update_critic(self) -> Batch:
        """One update, with a fresh batch, which is returned."""
        batch = self.mixture.sample(self.config.batch_size, self._draw)
        batch = shifted(batch, self.config.random_shift, self._draw).to(self._device)
        self._add(self.agent.update_critic(batch, self._learn))
        self.updates += 1
        return batch

    def _imagine(self) -> None:
        if self.imagination is not None:
            self._imagined |= self.imagination.advance(self.progress)

    def _add(self, metrics: Mapping[str, Tensor]) -> None:
        for key, number in metrics.items():
            total, count = self._sums.get(key, (0.0, 0))
            self._sums[key] = (total + number.detach(), count + 1)

    def _require_finite(self) -> None:
        """Raise Diverged where a loss or another metric of the latest updates is not finite."""
        if math.isfinite(total(value for value, _ in self._sums.values())):
            return
        wrong = next(key for key, (value, _) in self._sums.items() if not math.isfinite(value))
        raise Diverged(
            f"training diverged at step {self.progress}: {wrong} of the {wrong.partition('/')[0]} "
            f"is NaN or infinite. {LOWER}"
        )

    def _take_metrics(self) -> dict[str, float]:
        """Means since the last call, and the newest of the imagination's numbers."""
        metrics = {key: float(total) / count for key, (total, count) in self._sums.items()}
        if self._ended:
            returns, successes, lengths = zip(*self._ended, strict=True)
            metrics["train/return"] = float(np.mean(returns))
            metrics["train/success"] = float(np.mean(successes))
            metrics["train/length"] = float(np.mean(lengths))
        metrics |= self._imagined
        metrics["train/episodes"] = float(self.episodes)
        metrics["train/updates"] = float(self.updates)
        self._sums, self._ended, self._imagined = {}, [], {}
        return metrics

    # -- resuming

    def tables(self) -> Mapping[str, Table]:
        """Rows that grow, which are saved apart."""
        return self.replay.tables()

    def tree(self) -> dict[str, Any]:
        """`snapshot` without the rows of `tables`, as it is saved."""
        return self.snapshot(replay_rows=False).tree()

    def take_on(self, tree: Mapping[str, Any]) -> list[int]:
        """`restore` of what `tree` returned, once the rows of `tables` are back."""
        return self.restore(LoopSnapshot.of(tree))

    def snapshot(self, replay_rows: bool = True) -> LoopSnapshot:
        """Everything that `run` and `learn` go on from.

        Args:
            replay_rows: False leaves out the rows of `replay.tables`, which are saved apart.
        """
        imagination = self.imagination
        return LoopSnapshot(
            agent=self.agent.state_dict(),
            replay=self.replay.snapshot(replay_rows).tree(),
            imagination=None if imagination is None else imagination.state_dict(),
            statistics=None if self.statistics is None else self.statistics.state_dict(),
            counts=[self.step, self.updates, self.episodes, self.successes],
            learnt=self.learnt,
            started=self._started,
            due=[self._due, self._policy_due],
            generators=[g.get_state() for g in (self._act, self._draw, self._learn)],
            sums=dict(self._sums),
            imagined=dict(self._imagined),
            ended=list(self._ended),
            obs=copied(self._obs),
            running=[running.copy() for running in self._running],
        )

    def restore(self, saved: LoopSnapshot) -> list[int]:
        """Take on what `snapshot` returned; running episodes are played again.

        Returns:
            Environments whose episode came out differently (a simulator that its seed does not
            fix): those episodes are given up and new ones begun.

        Raises:
            InputError: the replay was another one.
            Other exceptions: the snapshot is not of this loop.
        """
        count, dim = self.envs.num_envs, self.agent.spec.dim
        if saved.running and len(saved.running) != count:
            raise ValueError(f"{len(saved.running)} running episodes in {count} environments")
        for episode in saved.running:
            if any(len(action) != dim for action in (*episode.actions, *episode.queue)):
                raise ValueError(f"a running episode with actions that are not of {dim} numbers")
        self.replay.restore(ReplaySnapshot.of(saved.replay))
        self.step, self.updates, self.episodes, self.successes = saved.counts
        self.learnt, self._started = saved.learnt, saved.started
        self._due, self._policy_due = saved.due
        generators = (self._act, self._draw, self._learn)
        for generator, state in zip(generators, saved.generators, strict=True):
            set_stream(generator, state)
        self._sums, self._imagined = dict(saved.sums), dict(saved.imagined)
        self._ended = list(saved.ended)
        self._running = [running.copy() for running in saved.running]
        changed: list[int] = []
        if self._running:
            obs = play_again(
                self.envs,
                self._running,
                self.agent.spec,
                self.agent.acting(),
                decided_from=self.config.start_steps - self.step + len(self._running[0].actions),
            )
            self._obs = saved.obs
            if changed := differing(obs, saved.obs):
                for i in changed:
                    self.replay.cut(i)
                self._obs = obs
                self._restart(np.isin(np.arange(len(self._running)), changed))
        # Last, as a policy that is asked again may draw random numbers of its own.
        self.agent.load_state_dict(saved.agent)
        if self.imagination is not None and saved.imagination is not None:
            self.imagination.load_state_dict(saved.imagination)
        if saved.statistics is None:
            self.statistics = None  # a run of before goes on by those that it began with
        elif self.statistics is not None:
            self.statistics.load_state_dict(saved.statistics)
        return changed
