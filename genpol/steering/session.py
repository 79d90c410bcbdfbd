"""The arms of a steering evaluation, run on the same initial states, and their latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genpol.reports.videos import film_pair, write_video
from genpol.steering.around import candidates_of
from genpol.steering.overlap import Overlap, overlapping
from genpol.steering.paired_episodes import MakeEnv, Mode, Rollouts, run_episodes, stack
from genpol.steering.result import TITLES, ArmResult, SteerResult
from genpol.steering.select import Select, argmax, keep_if_better, random_choice, softmax
from genpol.steering.steered import Steered
from offline.types import Critic, Obs, Policy, executed


@dataclass
class Arms:
    """What the arms are made of."""

    policy: Policy
    value: Critic
    select: Select
    num_candidates: int = 32
    gate: float | None = None
    """Ensemble disagreement above which the base's own sample is executed."""
    deadline: float | None = None
    """Seconds for a decision."""
    candidate_noise: float = 0.0
    """Candidates lie around one proposal, see `genpol.steering.around`; 0: all are proposed."""
    filtered: Policy | None = None
    """A clone of the successful episodes, for the arm of that name."""
    overlap: Overlap | None = None
    """How the plans of every arm overlap; None decides between chunks."""
    diversity: str | None = None
    """What the check of the steered arm's proposals said, once it has run."""

    def make(self, arm: str) -> Policy:
        """The policy of one arm. All arms live with the same overlap."""
        policy: Policy
        if arm == "base":
            policy = self.policy
        elif arm == "mode":
            policy = self.mode()
        elif arm == "filtered":
            assert self.filtered is not None
            policy = self.filtered
        else:
            count, edit = candidates_of(
                self.policy.spec, self.value.spec, self.num_candidates, self.candidate_noise
            )
            if arm == "random":
                policy = Steered(self.policy, self.value, count, random_choice(), edit=edit)
            else:
                policy = Steered(
                    self.policy,
                    self.value,
                    count,
                    self.select,
                    edit=edit,
                    gate=self.gate,
                    deadline=self.deadline,
                )
        return overlapping(policy, self.overlap)

    def mode(self) -> Mode:
        """The arm of that name, by itself."""
        return Mode(self.policy, self.num_candidates)


def make_select(temperature: float, margin: float | None) -> Select:
    """The rule that the command line's flags ask for."""
    if margin is not None:
        return keep_if_better(margin)
    return softmax(temperature) if temperature > 0 else argmax()


def run_arms(
    arms: Arms,
    names: Sequence[str],
    make_env: MakeEnv,
    *,
    seeds: Sequence[int],
    seed: int,
    parallel: int = 50,
    record: Sequence[int] = (),
    progress: Callable[[str], Callable[[int], None] | None] = lambda arm: None,
    stop: Callable[[], bool] | None = None,
    after: Callable[[dict[str, Rollouts]], None] | None = None,
) -> dict[str, Rollouts]:
    """Run every arm on the same initial states; only base and steered are filmed.

    `after` is called after each arm, with what there is of all of them. Where `stop` says so, the
    rest is left out.
    """
    envs: list[Any] = []
    rollouts = {}
    for name in names:
        policy = arms.make(name)
        rollouts[name] = run_episodes(
            policy,
            make_env,
            seeds,
            generator_seed=seed,
            chunk=arms.value.spec.chunk,
            execute=None if arms.overlap is None else arms.overlap.execute,
            parallel=parallel,
            record=record if name in ("base", "steered") else (),
            envs=envs,
            progress=progress(name),
            stop=stop,
        )
        if after is not None:
            after(rollouts)
        if stop and stop():
            break
        if name == "steered" and isinstance(policy, Steered):
            arms.diversity = policy.diversity.verdict
    return rollouts


def latencies(
    arms: Arms, observations: Sequence[Obs], *, repeats: int = 3, warm_up: int = 5
) -> dict[str, list[float]]:
    """Seconds per decision for one robot (B = 1), base and steered in turn on the same machine.

    Args:
        arms: as in the evaluation.
        observations: each (1, ...); every one is decided `repeats` times by both arms.
        repeats: of each observation.
        warm_up: decisions that are not counted.

    Returns:
        {"base": [...], "steered": [...]}, in order, so that entries can be paired.
    """
    steered = arms.make("steered")
    assert isinstance(steered, Steered)
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {"base": [], "steered": []}
    chunk = arms.value.spec.chunk

    def base(obs: Obs) -> None:
        act = arms.policy.sample(obs, 1, generator)[:, 0, :chunk]
        executed(arms.policy, act).numpy()

    def with_value(obs: Obs) -> None:
        act = steered.decide(obs, generator).action
        executed(steered, act).numpy()

    arms.policy.reset()
    for _ in range(warm_up):
        base(observations[0])
        with_value(observations[0])
    for _ in range(repeats):
        for obs in observations:
            for name, decide in (("base", base), ("steered", with_value)):
                started = time.perf_counter()
                decide(obs)
                seconds[name].append(time.perf_counter() - started)
    arms.policy.reset()
    return seconds


def first_observations(make_env: MakeEnv, seeds: Sequence[int]) -> list[Obs]:
    """The first observation of each layout, (1, ...)."""
    env = make_env()
    return [stack([env.reset(seed=int(seed))[0]]) for seed in seeds]


def result(
    arms: Arms,
    rollouts: dict[str, Rollouts],
    seconds: dict[str, list[float]],
    *,
    title: str,
    settings: dict[str, Any],
    folder: Path,
) -> SteerResult:
    """Everything that was found, and the films of base and steered side by side in `folder`."""
    mode = arms.mode()
    found = {
        name: ArmResult(
            success=run.success,
            returns=run.returns,
            lengths=run.lengths,
            seeds=run.seeds,
            scores=run.scores if name == "steered" else None,
            fell_back=run.fell_back,
            spread=run.spread,
            note="medoid of K" if name == "mode" and mode.kind == "medoid" else "",
        )
        for name, run in rollouts.items()
    }
    films = []
    base, steered = rollouts["base"], rollouts["steered"]
    for i, recording in steered.recordings.items():
        captions = [
            f"{TITLES[name]}: {'success' if run.success[i] else 'failure'}"
            for name, run in (("base", base), ("steered", steered))
        ]
        path = folder / "videos" / f"episode-{i:03d}.mp4"
        path = write_video(path, film_pair(base.recordings[i], recording, captions))
        films.append((f"initial state {base.seeds[i]}", str(path.relative_to(folder))))
    return SteerResult(
        found,
        latency=seconds,
        title=title,
        settings=settings,
        diversity=arms.diversity,
        mode_kind=mode.kind,
        videos=films,
    )
