"""Plays a round of episodes side by side and keeps the denoising chain of every decision.

A lane is one of the environments that are stepped together. A lane whose episode is over takes the
next episode of the round; when none is left it idles, and its steps are not counted. Each episode
has a random stream of its own, from which all its decisions draw: what an episode does depends on
neither the number of lanes nor on its neighbours, but for the last bits of batched products.

Shape legend: M episodes, J decisions of the longest, N decisions of all, T denoising steps,
D numbers of a chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Generator, Tensor

from diffusion.chain import Condition, DenoisingChain, sample_chain
from genpol.policies.chains import PolicyChains, joined
from offline.errors import Diverged
from offline.finite import LOWER
from offline.learning.running_episodes import Observed, VectorEnv, copied
from offline.types import executed

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Start:
    """How an episode begins."""

    seed: int
    """Of its initial state."""
    noise: Generator
    """What its decisions draw from."""


@dataclass
class Outcome:
    """What an episode came to."""

    decisions: list[int] = field(default_factory=list)
    """Rows of its decisions among those of the round, in order."""
    returned: float = 0.0
    """Sum of the environment's own rewards."""
    success: bool = False
    length: int = 0
    """Environment steps."""


@dataclass(frozen=True)
class Played:
    """A round of M episodes and the N decisions that they are made of."""

    episodes: list[Outcome]
    chain: DenoisingChain
    """N chains, in the order in which they were drawn."""
    cond: Condition
    """Of the N decisions."""

    @property
    def steps(self) -> int:
        """Environment steps."""
        return sum(episode.length for episode in self.episodes)

    @property
    def place(self) -> Tensor:
        """(M, J) the row of each episode's decision j; -1 past its end."""
        longest = max(len(episode.decisions) for episode in self.episodes)
        rows = [e.decisions + [-1] * (longest - len(e.decisions)) for e in self.episodes]
        return torch.tensor(rows)


@dataclass
class _Lane:
    """The episode that an environment is in."""

    number: int
    outcome: Outcome
    queue: deque[np.ndarray] = field(default_factory=deque)
    """Rest of the chunk decided on, in the environment's units."""


def play(
    envs: VectorEnv,
    chains: PolicyChains,
    starts: Sequence[Start],
    *,
    dtype: torch.dtype = torch.float32,
    path: bool = True,
    stop: Stop | None = None,
) -> Played | None:
    """Play one episode from every start, to its end.

    Args:
        envs: environments side by side, with info["success"]; they are reset.
        chains: of the policy that decides.
        starts: of the M episodes, in the order in which lanes take them.
        dtype: that chains are stored in, and that actions are rounded to.
        path: whether chains are kept, or the finished chunks alone.
        stop: asked at every step.

    Returns:
        The round; None if `stop` said so.

    Raises:
        Diverged: the policy's actions are not finite.
    """
    lanes = _Lanes(envs, starts)
    drawn: list[DenoisingChain] = []
    conditions: list[Condition] = []
    count = 0
    while lanes.going():
        if stop and stop():
            return None
        due = lanes.undecided()
        if due:
            cond = chains.condition(lanes.observations(due))
            noise = [starts[lanes.running[i].number].noise for i in due]
            chain = _draw(chains, cond, noise, dtype, path)
            acts = chains.action(chain.sample.float()).cpu()
            if not torch.isfinite(acts).all():
                raise Diverged(
                    f"the policy gave NaN or infinite actions, so training has diverged. {LOWER}"
                )
            raw = executed(chains.policy, acts).numpy()
            for row, (i, chunk) in enumerate(zip(due, raw, strict=True), count):
                lanes.running[i].outcome.decisions.append(row)
                lanes.running[i].queue.extend(chunk)
            count += len(due)
            drawn.append(chain)
            conditions.append(cond)
        lanes.step()
    return Played(lanes.outcomes, DenoisingChain.concatenate(drawn), joined(conditions))


def _draw(
    chains: PolicyChains, cond: Condition, noise: list[Generator], dtype: torch.dtype, path: bool
) -> DenoisingChain:
    """One chain for each row of `cond`."""
    process, device = chains.process, chains.device
    room = DenoisingChain.empty(
        len(noise), chains.shape, process.num_steps, dtype=dtype, device=device, path=path
    )
    return sample_chain(
        chains.drawer(cond), process, cond, chains.shape, noise, device=device, into=room
    )


class _Lanes:
    """The environments, and which episode each of them is in."""

    def __init__(self, envs: VectorEnv, starts: Sequence[Start]) -> None:
        self.envs, self.starts = envs, starts
        self.running: dict[int, _Lane] = {}
        self.outcomes = [Outcome() for _ in starts]
        self._waiting: Iterator[int] = iter(range(len(starts)))
        self._over = np.ones(envs.num_envs, bool)
        """Environments that have to be reset before they are stepped again."""
        self._obs: Observed = {}

    def going(self) -> bool:
        """Begin episodes in free lanes; whether any is running."""
        seeds = [0] * self.envs.num_envs  # of lanes that idle, as every lane needs one
        fresh = self._over
        for i in range(self.envs.num_envs):
            if i not in self.running and (number := next(self._waiting, None)) is not None:
                self.running[i] = _Lane(number, self.outcomes[number])
                seeds[i], fresh[i] = self.starts[number].seed, True
        if not self.running:
            return False
        if fresh.all():
            self._obs = copied(self.envs.reset(seed=seeds)[0])
        elif fresh.any():
            self._obs = copied(self.envs.reset(seed=seeds, options={"reset_mask": fresh})[0])
        return True

    def undecided(self) -> list[int]:
        """Lanes whose chunk is executed."""
        return [i for i, lane in sorted(self.running.items()) if not lane.queue]

    def observations(self, lanes: list[int]) -> dict[str, Tensor]:
        """What these lanes see."""
        return {key: torch.from_numpy(values[lanes]) for key, values in self._obs.items()}

    def step(self) -> None:
        """One step of every environment."""
        size = len(next(iter(self.running.values())).queue[0])
        raw = np.zeros((self.envs.num_envs, size), np.float32)
        for i, lane in self.running.items():
            raw[i] = lane.queue.popleft()
        obs, rewards, terminated, truncated, info = self.envs.step(raw)
        self._obs = copied(obs)
        self._over = np.asarray(terminated) | np.asarray(truncated)
        success = np.asarray(info.get("success", np.zeros(len(raw), bool)), bool)
        for i in list(self.running):
            outcome = self.running[i].outcome
            outcome.returned += float(rewards[i])
            outcome.length += 1
            outcome.success = bool(success[i])
            if self._over[i] or outcome.success:
                del self.running[i]
