"""Evaluation during training, on layouts never trained on; training is left undisturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Generator, Tensor, nn

from genpol.reports.stats import wilson
from genpol.reports.videos import overlay, side_by_side, write_video
from genpol.runs.rng import undisturbed
from genpol.steering.paired_episodes import MakeEnv, Rollouts, run_episodes
from offline.types import Policy

PARALLEL = 25  # environments side by side; results depend on it, so it is not an option


class Stopped(Exception):
    """The evaluation was asked to stop; nothing of it counts."""


@dataclass
class Evaluator:
    """Runs the evaluation episodes of one training run.

    Args:
        make_env: makes one environment.
        seeds: of the layouts.
        noise_seed: of the policy's noise, the same every time.
        has_success: whether the environment says when its task is achieved.
        beside: entered while it runs, such as for a base policy that remembers its episode.
    """

    make_env: MakeEnv
    seeds: Sequence[int]
    noise_seed: int
    has_success: bool = True
    beside: Callable[[], AbstractContextManager[None]] = nullcontext
    envs: list[Any] = field(default_factory=list)
    """Kept from one evaluation to the next."""

    def __call__(
        self,
        policy: Policy,
        *,
        record: int = 0,
        stop: Callable[[], bool] | None = None,
        progress: Callable[[int], None] | None = None,
        networks: Iterable[nn.Module] = (),
        generators: Iterable[Generator] = (),
    ) -> tuple[dict[str, float], Rollouts]:
        """One episode on every layout.

        Args:
            policy: of all episodes.
            record: how many of the episodes to film, the first ones.
            stop: asked at every decision.
            progress: called with the number of episodes that ended.
            networks, generators: of the policy, beside itself; see `undisturbed`.

        Returns:
            `summarised`, and the episodes.

        Raises:
            Stopped: `stop` said so.
        """
        asked: Any = policy if stop is None else _Stoppable(policy, stop)
        own = [policy] if isinstance(policy, nn.Module) else []
        with undisturbed([*own, *networks], generators), self.beside():
            rollouts = run_episodes(
                asked,
                self.make_env,
                self.seeds,
                generator_seed=self.noise_seed,
                parallel=PARALLEL,
                record=range(min(record, len(self.seeds))),
                envs=self.envs,
                progress=progress,
            )
            policy.reset()
        return summarised(rollouts, self.has_success), rollouts

    def close(self) -> None:
        for env in self.envs:
            env.close()
        self.envs.clear()


class _Stoppable:
    """A policy that raises `Stopped` at its next decision once `stop` says so."""

    def __init__(self, policy: Policy, stop: Callable[[], bool]) -> None:
        self._policy, self._stop = policy, stop

    def __getattr__(self, name: str) -> Any:  # whatever else it can do, such as `decide`
        return getattr(self._policy, name)

    def commit(self, act: Tensor) -> None:
        if self._stop():
            raise Stopped
        self._policy.commit(act)


def summarised(rollouts: Rollouts, has_success: bool = True) -> dict[str, float]:
    """eval/success with its 95 % Wilson interval (NaN where there is no such thing), eval/return
    (sum of the environment's own rewards) and eval/length (steps), means over episodes."""
    share = low = high = float("nan")
    if has_success:
        share = float(np.mean(rollouts.success))
        low, high = wilson(int(rollouts.success.sum()), len(rollouts.success))
    return {
        "eval/success": share,
        "eval/success_low": low,
        "eval/success_high": high,
        "eval/return": float(np.mean(rollouts.returns)),
        "eval/length": float(np.mean(rollouts.lengths)),
    }


def write_films(
    rollouts: Rollouts, folder: Path, step: int, *, has_success: bool = True
) -> list[tuple[Path, str]]:
    """One film of each recorded episode, step-000000-episode-0.mp4; returns (path, caption)."""
    films = []
    for i, recording in rollouts.recordings.items():
        outcome = "success" if rollouts.success[i] else f"no success in {rollouts.lengths[i]} steps"
        if not has_success:
            outcome = f"return {rollouts.returns[i]:.3g} in {rollouts.lengths[i]} steps"
        caption = f"step {step}: {outcome}"
        film = side_by_side([overlay(recording)], [caption])
        path = write_video(folder / f"step-{step:06d}-episode-{i}.mp4", film)
        films.append((path, caption))
    return films
