"""One training run and its schedule: evaluations, checkpoints, rows, films, the summary.

    step 0: pretrain -> evaluate -> checkpoint;  then  loop -> evaluate -> checkpoint -> ...

Everything that is due goes by the step alone, so a run that is stopped or killed and resumed does
the same as one that is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from genpol.agents.config import TrainConfig
from genpol.agents.diagnostics import diagnose
from genpol.runs.metrics import MetricsCsv
from genpol.runs.rng import (
    global_random_state,
    set_global_random_state,
    undisturbed,
)
from genpol.runs.run import Run
from genpol.runs.segments import Segments
from genpol.runs.state_tree import fitting, flatten, unflatten
from genpol.training.evaluation import Evaluator, Stopped, write_films
from genpol.training.outcomes import write_outcomes
from offline.data.tables import Table
from offline.errors import Diverged, InputError
from offline.files import disk_errors
from offline.finite import LOWER, not_finite
from offline.learning.agent import Agent
from offline.learning.loop import Imagines, Log, Loop
from offline.learning.running_episodes import VectorEnv

Stop = Callable[[], bool]
Pretrain = Callable[[Callable[[int, dict[str, float]], None], Stop], None]

KEPT = 2
"""Checkpoints that stay: the newest, and the one before in case that one is torn."""
_FULL = "Free some space, then continue with --resume"


class _Schedule(BaseModel):
    """What a checkpoint says beside the states of the loop, its sources and random numbers."""

    model_config = ConfigDict(strict=True)

    evaluated: Annotated[int, Field(ge=-1)]
    result: dict[str, float]
    seconds: tuple[FiniteFloat, FiniteFloat]


class Clock:
    """CPU-seconds of this process and seconds, earlier sittings included."""

    def __init__(self) -> None:
        self.cpu_mark, self.wall_mark = time.process_time(), time.perf_counter()
        self.before = (0.0, 0.0)

    def read(self) -> dict[str, float]:
        return {
            "time/cpu_seconds": self.before[0] + time.process_time() - self.cpu_mark,
            "time/wall_seconds": self.before[1] + time.perf_counter() - self.wall_mark,
        }


class Trains(Protocol):
    """What a session runs, evaluates and saves: `offline.learning.loop.Loop`, or what has its
    interface, such as `genpol.rounds.loop.Rounds`."""

    agent: Any  # an Agent; what a loop asks of it beside that is the loop's business
    envs: VectorEnv
    imagination: Imagines | None
    step: int
    """Environment steps so far."""
    learnt: int
    """Updates so far without an environment step."""
    updates: int
    episodes: int
    successes: int

    @property
    def progress(self) -> int:
        """What evaluations, rows and checkpoints are due by."""

    def run(self, until: int, *, log: Log | None = None, stop: Stop | None = None) -> None:
        """Go on until `until` environment steps are done, or `stop` says so."""

    def learn(self, until: int, *, log: Log | None = None, stop: Stop | None = None) -> None:
        """Go on until `until` updates are made without an environment step, or `stop` says so."""

    def tables(self) -> Mapping[str, Table]:
        """Rows that are saved apart."""

    def tree(self) -> dict[str, Any]:
        """All else that it goes on from."""

    def take_on(self, tree: Mapping[str, Any]) -> list[int]:
        """Go on from what `tree` returned; the environments whose episodes were given up."""


class Session:
    """One sitting of a training run.

    Args:
        loop: what trains.
        run: where it is written.
        config: how often what is due.
        evaluator: of the agent's evaluating policy; None where there is no environment.
        clock: started when the sitting did.
        pretrain: done before the first environment step; (log, stop).
        videos: episodes filmed before training and at the end.
        sources: further parts with state, such as a streamed dataset, by name.
        bar: a progress bar.
    """

    def __init__(
        self,
        loop: Trains,
        run: Run,
        config: TrainConfig,
        evaluator: Evaluator | None,
        *,
        clock: Clock,
        pretrain: Pretrain | None = None,
        videos: int = 0,
        sources: Mapping[str, Any] | None = None,
        bar: Any = None,
    ) -> None:
        self.loop, self.run, self.config, self.evaluator = loop, run, config, evaluator
        self.clock, self.pretrain, self.videos, self.bar = clock, pretrain, videos, bar
        self.sources = dict(sources or {})
        self.segments = Segments(loop.tables)
        self.evaluated = self.saved = -1
        """Step of the latest evaluation, and of the latest checkpoint."""
        self.result: dict[str, float] = {}
        """Of the latest evaluation."""
        self.unsaved = True
        """Whether something has happened since the latest checkpoint."""

    # -- going on

    def restore(self) -> None:
        """Go back to the newest checkpoint, if there is one; rows logged after it are dropped.

        Raises:
            InputError: none can be read, or it is not of this run.
        """
        found = self.run.latest_checkpoint(self.segments)
        if found is None:
            self.run.truncate(-1)
            return
        step, tensors, document = found
        with fitting(f"the checkpoint of step {step} in {self.run.folder} does not fit this run"):
            self._take_on(step, unflatten(tensors, document))
        self.run.truncate(step)

    def _take_on(self, step: int, state: Mapping[str, Any]) -> None:
        schedule = _Schedule.model_validate({key: state[key] for key in _Schedule.model_fields})
        keep_rates(state["loop"]["agent"], self.loop.agent.state_dict())  # --lr may be another
        if self.loop.imagination is not None:
            keep_rates(state["loop"]["imagination"], self.loop.imagination.state_dict())
        differing = self.loop.take_on(state["loop"])
        if self.loop.progress != step:
            raise ValueError(f"it holds the state of step {self.loop.progress}")
        if differing:
            self.say(
                f"warning: {len(differing)} of {self.loop.envs.num_envs} running episodes came out "
                "differently when played again, and were given up: the simulator is not fixed by "
                "its seed, so this run will differ from one that was not stopped"
            )
        for name, source in self.sources.items():
            if name in state["sources"]:
                source.load_state_dict(state["sources"][name])
            else:
                self.say(
                    f"note: the checkpoint is of a version that did not save where --{name} stood, "
                    "so other batches come than without the stop"
                )
        set_global_random_state(state["random"])
        self.evaluated, self.saved, self.unsaved = schedule.evaluated, step, False
        self.result, self.clock.before = schedule.result, schedule.seconds

    def go_on(self, stop: Stop) -> bool:
        """Train to the end, or until `stop`; whether the end was reached."""
        if self.saved < 0 and not self._pretrain(stop):
            return False
        while True:
            step, last = self.loop.progress, self.loop.progress >= self.total
            due = _crossed(self.evaluated, step, self.config.eval_every)
            if (due or last and self.evaluated != step) and not self.evaluate(stop):
                break
            if last or stop():
                break
            if _crossed(self.saved, step, self.config.checkpoint_every):
                self.save()
            until = min(
                _following(step, self.config.eval_every),
                _following(step, self.config.checkpoint_every),
                self.total,
            )
            self.unsaved = True
            if self.loop.learnt < self.config.offline_updates:
                first = min(until, self.config.offline_updates)
                self.loop.learn(first, log=self.log, stop=stop)
            else:
                self.loop.run(until - self.loop.learnt, log=self.log, stop=stop)
        if self.unsaved:
            self.save()
        return self.complete

    @property
    def complete(self) -> bool:
        """Whether all steps are done, and evaluated."""
        return self.loop.progress >= self.total and self.evaluated == self.loop.progress

    @property
    def total(self) -> int:
        """What the loop's `progress` ends at."""
        return self.config.offline_updates + self.config.steps

    def _pretrain(self, stop: Stop) -> bool:
        """Whether it was not stopped; its rows are in pretrain.csv, by gradient step."""
        if self.pretrain is None:
            return True
        path = self.run.folder / "pretrain.csv"
        path.unlink(missing_ok=True)  # of a sitting that did not come to an end
        table, last = MetricsCsv(path), {}

        def log(step: int, metrics: dict[str, float]) -> None:
            with disk_errors(f"cannot write {path}", _FULL):
                table.log(step, metrics | self.clock.read())
            last.update(metrics)
            self.show({"pretraining": float(step)} | metrics)

        self.pretrain(log, stop)
        table.close()
        if stop():
            return False
        if last:
            self.run.log(0, last)
        self.save()  # so that what took long is not done again
        return True

    # -- what is due

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """A row of the loop's metrics."""
        self.run.log(step, metrics | self.clock.read())
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
        self.show(self.result | metrics)

    def evaluate(self, stop: Stop) -> bool:
        """Evaluate and diagnose at the present step; False if stopped, to be done again. Without an
        environment there is nothing to do."""
        self.check()
        step = self.loop.progress
        agent: Agent = self.loop.agent
        if self.evaluator is None:
            self.evaluated, self.unsaved = step, True
            return True
        film = self.videos if step == 0 or step >= self.total else 0
        done = 0

        def progress(count: int) -> None:
            nonlocal done
            done += count
            self.show({"evaluating": float(done)})

        try:
            metrics, rollouts = self.evaluator(
                agent.evaluating(),
                record=film,
                stop=stop,
                progress=progress,
                networks=agent.networks(),
                generators=agent.generators(),
            )
        except Stopped:
            return False
        folder = self.run.folder / "evaluations"
        with disk_errors(f"cannot write in {folder}", _FULL):
            write_outcomes(rollouts, folder, step)
        if film:
            folder = self.run.folder / "videos"
            with disk_errors(f"cannot write in {folder}", _FULL):
                films = write_films(rollouts, folder, step, has_success=self.evaluator.has_success)
            for i, (path, caption) in enumerate(films):
                self.run.log_video(step, f"videos/episode-{i}", path, caption)
        self.evaluated, self.result, self.unsaved = step, metrics, True
        self.run.log(step, metrics | self.diagnosed() | self.clock.read())
        return True

    def diagnosed(self) -> dict[str, float]:
        """How far the critic is to be trusted at the present step; see `diagnose`."""
        loop = self.loop
        if loop.updates == 0 or not isinstance(loop, Loop):
            return {}
        with undisturbed(loop.agent.networks(), loop.agent.generators()):
            return diagnose(loop.agent, loop.replay, loop.mixture, loop.progress)

    def check(self) -> None:
        """Check all weights, averages and optimisers, of the agent and of a world model.

        Raises:
            Diverged: names the network.
        """
        if parts := self.diverged():
            raise Diverged(
                f"training diverged by step {self.loop.progress}: there are NaN or infinite values "
                f"in the weights or optimisers of {', '.join(parts)}. {LOWER}"
            )

    def diverged(self) -> list[str]:
        """The parts of the agent, and the world model, that are not finite any more."""
        imagination = self.loop.imagination
        parts = dict(self.loop.agent.state_dict())
        if imagination is not None:
            parts["world model"] = imagination.state_dict().get("parts", {})
        found = []
        for name, part in parts.items():
            tensors, _ = flatten(part)
            tensors = {k: v for k, v in tensors.items() if not k.endswith("reward_range")}
            if not_finite(tensors) is not None:
                found.append(name)
        return found

    def save(self) -> None:
        """Write a checkpoint, and what a user deploys.

        Raises:
            Diverged: there are weights that are not finite; what was saved before stays.
            InputError: the disk refuses.
        """
        self.check()
        step = self.loop.progress
        state = {
            "loop": self.loop.tree(),
            "sources": {name: source.state_dict() for name, source in self.sources.items()},
            "random": global_random_state(),
            "evaluated": self.evaluated,
            "result": self.result,
            "seconds": tuple(self.clock.read().values()),
        }
        tensors, document = flatten(state)
        self.run.save_checkpoint(step, tensors, document, KEPT, self.segments)
        self.saved, self.unsaved = step, False
        with disk_errors(f"cannot write in {self.run.folder}", _FULL):
            self.loop.agent.save(self.run.folder)

    def finish(self) -> dict[str, float]:
        """Write summary.json; returns what is in it."""
        loop = self.loop
        share = loop.successes / loop.episodes if loop.episodes else float("nan")
        summary = self.result | {
            "train/env_steps": loop.step,
            "train/updates": loop.updates,
            "train/episodes": loop.episodes,
            "train/success": share,
            **self.clock.read(),
        }
        self.run.summary(summary)
        return summary

    def close(self) -> None:
        """Close the environments of evaluations."""
        if self.evaluator is not None:
            self.evaluator.close()

    # -- telling

    def note(self, error: InputError) -> InputError:
        """The same error, which also says what is left of the run. If networks have diverged, they
        are the cause of whatever it is."""
        try:
            self.check()
        except Diverged as cause:
            error = cause
        left = "no checkpoint had been written yet"
        if self.saved >= 0:
            kept = f"the checkpoint of step {self.saved} is kept"
            left = f"{kept}; continue with --resume {self.run.folder}"
        return type(error)(f"{error} [{left}]")

    def show(self, metrics: Mapping[str, float]) -> None:
        """The main numbers beside the progress bar."""
        if self.bar is None:
            return
        shown = {
            "eval/success": "eval",
            "train/success": "train",
            "critic/q_data": "q",
            "pretraining": "pretraining",
            "evaluating": "evaluating",
        }
        self.bar.set_postfix(
            {name: f"{metrics[key]:.3g}" for key, name in shown.items() if key in metrics}
        )

    def say(self, text: str) -> None:
        if self.bar is None:
            print(text)
        else:
            self.bar.write(text)


def keep_rates(stored: Any, own: Any) -> None:
    """Give the optimisers of a stored state tree the learning rates of `own`, a tree like it."""
    if isinstance(stored, Mapping) and isinstance(own, Mapping):
        for group, mine in zip(
            stored.get("param_groups", ()), own.get("param_groups", ()), strict=False
        ):
            group["lr"] = mine["lr"]
        for key in stored.keys() & own.keys():
            keep_rates(stored[key], own[key])


def _crossed(before: int, step: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, step]; -1 is before the first, which is 0."""
    return step // every > before // every


def _following(step: int, every: int) -> int:
    """The next multiple of `every` after `step`."""
    return (step // every + 1) * every
