"""One sitting of a run that learns from a dataset (`genpol clone`, `genpol value`), saved on the
way.

What is due goes by the step alone, so a run that is stopped or killed and resumed does the same as
one that is not. The policy or critic is saved with every checkpoint. Its document says so while
the run is unfinished, and there is no summary.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from genpol.runs.rng import global_random_state, set_global_random_state
from genpol.runs.run import Run
from genpol.runs.state_tree import fitting, flatten, unflatten
from offline.data.dataset_training import Learning, Steps
from offline.errors import InputError
from offline.files import disk_errors
from offline.model_files import UNFINISHED


class Saveable(Protocol):
    """What was learnt."""

    @property
    def meta(self) -> dict[str, Any]: ...
    def save(self, folder: Path) -> object: ...


class HasResult(Learning, Protocol):
    """What learns, and what it comes to."""

    def result(self, steps: Steps) -> Saveable: ...


class DatasetSession:
    """One sitting.

    Args:
        learning: what takes the steps.
        run: where it is written.
        config: the command's options.
        command: its name.
        folder: of what is learnt, inside the run folder.
        meta: what else its document says.
        summary: numbers of that document which the summary adds to the last metrics, by their
            name there.
        bar: a progress bar.
        shown: metrics beside it, with the short name of each.
    """

    def __init__(
        self,
        learning: HasResult,
        run: Run,
        config: Any,
        *,
        command: str,
        folder: str,
        meta: Mapping[str, Any],
        summary: Mapping[str, str],
        bar: Any,
        shown: Mapping[str, str],
    ) -> None:
        self.learning, self.run, self.config, self.command = learning, run, config, command
        self.path, self.meta, self.named = run.folder / folder, dict(meta), summary
        self.bar, self.shown = bar, shown
        self.steps = Steps(learning, config.steps, log_every=config.log_every)
        self.saved = 0
        """Step of the latest checkpoint."""

    def restore(self) -> None:
        """Go back to the newest checkpoint, if there is one; rows logged after it are dropped.

        Raises:
            InputError: the run has ended, and has none; none can be read, or it is not of this run.
        """
        found = self.run.latest_checkpoint()
        if found is None:
            if self.has_ended:
                raise InputError(
                    f"{self.run.folder} holds a run without checkpoints, as earlier versions left "
                    f"them: it has ended, what it learnt is in {self.path.name}/"
                )
            self.run.truncate(-1)
            return
        step, tensors, document = found
        with fitting(f"the checkpoint of step {step} in {self.run.folder} does not fit this run"):
            state = unflatten(tensors, document)
            self.steps.load_state_dict(state["steps"])
            set_global_random_state(state["random"])
        self.saved = step
        self.run.truncate(step)
        self.bar.update(step - self.bar.n)

    @property
    def has_ended(self) -> bool:
        """Whether the run has come to an end, this one or an earlier one."""
        return (self.run.folder / "summary.json").exists()

    def begin_again(self) -> None:
        """Be unfinished, which a run that had ended is once more when it is given more steps."""
        (self.run.folder / "summary.json").unlink(missing_ok=True)

    def go_on(self, stop: Callable[[], bool]) -> bool:
        """Learn to the end, or until `stop`; whether the end was reached.

        Raises:
            InputError: it diverged, or the disk refuses; says what is left.
        """
        try:
            self.steps.take(self.log, stop=stop, after=self._after)
            if self.steps.step > self.saved:
                self.save()
        except InputError as error:
            raise type(error)(f"{error} [{self._left()}]") from error
        return self.steps.complete

    def _after(self) -> None:
        if self.steps.step % self.config.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, and what a user takes.

        Raises:
            InputError: what was learnt is not finite, so that the one before stays; or the disk
                refuses.
        """
        self.steps.check()
        tensors, document = flatten(
            {"steps": self.steps.state_dict(), "random": global_random_state()}
        )
        step = self.steps.step
        self.run.save_checkpoint(step, tensors, document, self.config.keep_checkpoints)
        self.saved = step
        self._deploy(finished=False)

    def _deploy(self, *, finished: bool) -> Saveable:
        learnt = self.learning.result(self.steps)
        learnt.meta.update(self.meta)
        learnt.meta.pop(UNFINISHED, None)
        if not finished:
            learnt.meta[UNFINISHED] = f"{self.steps.step} of {self.steps.total} steps"
        with disk_errors(f"cannot write {self.path}", "Free some space or pass another --output"):
            learnt.save(self.path)
        return learnt

    def finish(self) -> Saveable:
        """Measure what is left to measure, log the last row, write the result and summary.json."""
        self.steps.finish(self.log)
        learnt = self._deploy(finished=True)
        counts = {name: learnt.meta[key] for name, key in self.named.items()}
        self.run.summary(self.steps.metrics | counts)
        return learnt

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log a row and show its main numbers."""
        self.run.log(step, metrics)
        self.bar.update(step - self.bar.n)
        shown = {name: metrics.get(key, math.nan) for key, name in self.shown.items()}
        self.bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items() if not math.isnan(v)})

    def how_to_go_on(self) -> str:
        """The command that does."""
        return f"genpol {self.command} --resume {self.run.folder}"

    def _left(self) -> str:
        if not self.saved:
            return "no checkpoint had been written yet"
        return (
            f"the checkpoint of step {self.saved} is kept: continue with {self.how_to_go_on()}, "
            "which takes another --lr"
        )
