"""Paired episodes: every arm faces the same initial states, side by side in one process.

Episodes run in lockstep so that a policy answers all of them in one call. A decision proposes a
chunk, tells the policy (`commit`), and executes the chunk open loop, or its first part where
decisions overlap; an episode that succeeds, ends or runs out of time leaves the batch (`keep`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from genpol.reports.videos import Recording
from offline.errors import InputError
from offline.types import HasMode, Obs, Policy, executed

MakeEnv = Callable[[], Any]  # -> gymnasium.Env with Dict observations, see robots/envs/make.py


@dataclass
class Rollouts:
    """What N episodes came to; entry i of each belongs to `seeds[i]`."""

    seeds: np.ndarray
    """(N,) of the initial states."""
    success: np.ndarray
    """(N,) bool."""
    returns: np.ndarray
    """(N,) sum of the environment's rewards."""
    lengths: np.ndarray
    """(N,) steps."""
    scores: np.ndarray
    """(N,) the value of the first chosen chunk; NaN for an arm that does not score."""
    fell_back: float
    """Share of decisions that the gate gave back to the base policy."""
    spread: float
    """Mean spread of the candidates (0: all alike); NaN for an arm that does not score."""
    recordings: dict[int, Recording]
    """By index i, for the episodes asked for."""
    ended: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """(N,) bool; the others were stopped on the way, or never begun."""


def run_episodes(
    policy: Policy,
    make_env: MakeEnv,
    seeds: Sequence[int],
    *,
    generator_seed: int,
    chunk: int | None = None,
    execute: int | None = None,
    parallel: int = 50,
    record: Sequence[int] = (),
    envs: list[Any] | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Rollouts:
    """Run one episode for each seed.

    Args:
        policy: proposes with `sample`, or with `decide` where it has one (`Steered`).
        make_env: makes one environment; `reset(seed=)` must fix the initial state.
        seeds: (N,) seeds of the initial states.
        generator_seed: seeds the policy's noise. Results depend on it and on `parallel`, because
            the episodes of a batch draw from one stream.
        chunk: actions of a proposal to commit and execute; the policy's own chunk when None.
        execute: how many of these are executed before the next decision, where they overlap: see
            `genpol.steering.overlap`. All of them when None.
        parallel: episodes side by side.
        record: indices into `seeds` of episodes to film.
        envs: environments to reuse; it is filled up to `parallel` with `make_env`.
        progress: called with the number of episodes that ended.
        stop: asked before every decision whether to leave; the result says which episodes `ended`.

    Raises:
        InputError: the policy's actions have the wrong shape or are not finite.
    """
    envs = [] if envs is None else envs
    count = len(seeds)
    rollouts = Rollouts(
        seeds=np.asarray(seeds),
        success=np.zeros(count, bool),
        returns=np.zeros(count),
        lengths=np.zeros(count, int),
        scores=np.full(count, np.nan),
        fell_back=0.0,
        spread=float("nan"),
        recordings={i: Recording() for i in record},
        ended=np.zeros(count, bool),
    )
    tallies = _Tallies()
    for first in range(0, count, parallel):
        rows = list(range(first, min(first + parallel, count)))
        while len(envs) < len(rows):
            envs.append(make_env())
        generator = torch.Generator().manual_seed(generator_seed + first)
        _run_batch(
            policy, envs, rows, seeds, generator, chunk, execute, rollouts, tallies, progress, stop
        )
    rollouts.fell_back = tallies.fell_back / max(tallies.decisions, 1)
    rollouts.spread = tallies.spread / tallies.scored if tallies.scored else float("nan")
    return rollouts


@dataclass
class _Tallies:
    decisions: int = 0
    scored: int = 0
    fell_back: float = 0.0
    spread: float = 0.0


def _run_batch(
    policy: Policy,
    envs: list[Any],
    rows: list[int],
    seeds: Sequence[int],
    generator: Generator,
    chunk: int | None,
    execute: int | None,
    rollouts: Rollouts,
    tallies: _Tallies,
    progress: Callable[[int], None] | None,
    stop: Callable[[], bool] | None,
) -> None:
    """Run the episodes `rows` to their ends, in lockstep."""
    alive = list(range(len(rows)))  # indices into rows and envs
    latest = [env.reset(seed=int(seeds[row]))[0] for env, row in zip(envs, rows, strict=False)]
    policy.reset()
    while alive and not (stop and stop()):
        obs = stack([latest[i] for i in alive])
        decision = policy.decide(obs, generator) if hasattr(policy, "decide") else None
        act = policy.sample(obs, 1, generator)[:, 0] if decision is None else decision.action
        act = act[:, : chunk or policy.spec.chunk].cpu()
        raw = _in_env_units(policy, act, len(alive))
        policy.commit(act)
        tallies.decisions += len(alive)
        if decision is not None:
            tallies.scored += len(alive)
            tallies.fell_back += float(decision.fell_back.sum())
            tallies.spread += float(decision.spread.sum())
        going: list[int] = []
        for position, i in enumerate(alive):
            row, env = rows[i], envs[i]
            if decision is not None and rollouts.lengths[row] == 0:
                rollouts.scores[row] = float(
                    decision.scores[position, int(decision.chosen[position])]
                )
            film = rollouts.recordings.get(row)
            ended = False
            for action in raw[position, :execute]:
                if film is not None:
                    film.frames.append(env.render())
                    film.decisions.append(_shown(policy, decision, position))
                latest[i], reward, terminated, truncated, info = env.step(action)
                rollouts.returns[row] += float(reward)
                rollouts.lengths[row] += 1
                rollouts.success[row] |= bool(info.get("success", False))
                ended = bool(terminated or truncated or rollouts.success[row])
                if ended:
                    break
            if not ended:
                going.append(position)
                continue
            rollouts.ended[row] = True
            if film is not None:
                film.frames.append(env.render())
                film.decisions.append(_shown(policy, decision, position))
            if progress is not None:
                progress(1)
        if len(going) < len(alive):
            policy.keep(torch.tensor(going, dtype=torch.long))
            alive = [alive[position] for position in going]


def stack(observations: list[dict[str, np.ndarray]]) -> Obs:
    """Observations of single environments as one batch."""
    return {
        key: torch.from_numpy(np.stack([observation[key] for observation in observations]))
        for key in observations[0]
    }


def _in_env_units(policy: Policy, act: Tensor, rows: int) -> np.ndarray:
    if act.ndim != 3 or len(act) != rows or act.shape[-1] != policy.spec.dim:
        raise InputError(
            f"expected actions (B={rows}, H, A={policy.spec.dim}) from the policy, received "
            f"{tuple(act.shape)}"
        )
    if not torch.isfinite(act).all():  # before clipping, which makes infinity a bound
        raise InputError("the policy gave NaN or infinite actions: are its weights intact?")
    return executed(policy, act).numpy()


def _shown(policy: Policy, decision: Any, position: int) -> dict[str, np.ndarray]:
    if decision is None:
        return {}
    candidates = policy.spec.unnormalize(decision.candidates[position].float().cpu())
    return {
        "candidates": candidates.numpy(),
        "scores": decision.scores[position].float().cpu().numpy(),
        "chosen": np.asarray(int(decision.chosen[position])),
    }


class Mode:
    """A policy that decodes its mode, as a policy: the arm that steering has to beat.

    `HasMode` policies decode it themselves. From a black box that does not, draw `draws` proposals
    and take the medoid: the one with the smallest mean distance to the others.
    """

    def __init__(self, base: Policy, draws: int = 32) -> None:
        self.base, self.draws, self.spec = base, draws, base.spec
        self.kind = "mode" if isinstance(base, HasMode) else "medoid"

    def reset(self) -> None:
        self.base.reset()

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """The same chunk n times: (B, n, H, A)."""
        if isinstance(self.base, HasMode):
            act = self.base.mode(obs, generator)
        else:
            act = medoid(self.base.sample(obs, self.draws, generator))
        return act[:, None].expand(-1, n, -1, -1)

    def commit(self, act: Tensor) -> None:
        self.base.commit(act)

    def keep(self, rows: Tensor) -> None:
        self.base.keep(rows)


def medoid(candidates: Tensor) -> Tensor:
    """(B, K, H, A) -> (B, H, A): the candidate with the smallest mean distance to the others."""
    flat = candidates.flatten(2).float()
    chosen = torch.cdist(flat, flat).mean(-1).argmin(-1)
    return candidates[torch.arange(len(candidates), device=chosen.device), chosen]
