"""Reads what a fine-tuning run has left in its folder so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from genpol.finetuning.samples import Scores, read_evaluation
from genpol.reports.charts import Floats, Log, known, read_log
from offline.documents import read_document


@dataclass(frozen=True)
class RunRecord:
    """A run, under way or finished.

    Attributes:
        config: its config.json.
        summary: its summary.json; empty until it has ended.
        log: its metrics.csv.
        before, after: the evaluations before and after training; None where there is none yet.
        controls: what stands beside the result, by name: "best_of_4", "guidance_3".
    """

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    log: Log
    before: Scores | None
    after: Scores | None
    controls: dict[str, Scores] = field(default_factory=dict)

    @property
    def pair(self) -> tuple[Scores, Scores] | None:
        """Both evaluations, where they are of the same prompts."""
        if self.before is None or self.after is None or self.before.prompts != self.after.prompts:
            return None
        return self.before, self.after

    @property
    def epochs(self) -> int:
        """Epochs that the log has."""
        return int(self.log["step"][-1]) if len(self.log["step"]) else 0

    def last(self, name: str) -> float | None:
        """The last value of a column; None where there is none."""
        values = known(self.log, name)[1]
        return float(values[-1]) if len(values) else None

    def evaluations(self, name: str) -> tuple[Floats, Floats]:
        """Steps and values of "eval/NAME" over the same prompts.

        The first and the last evaluation may be over more prompts than those in between: of these,
        only the scores of the prompts that all have are taken.
        """
        steps, values = known(self.log, f"eval/{name}")
        values, count = values.copy(), int(self.config.get("eval_images") or 0)
        ends = ((0, self.before, 0), (-1, self.after, self.epochs))
        for at, scores, step in ends:
            if scores is None or name not in scores.scores or not len(steps):
                continue
            if count and steps[at] == step:
                values[at] = scores.scores[name][:count].mean()
        return steps, values


def read_run(folder: Path) -> RunRecord:
    """Read what `genpol finetune` has left in a folder, during a run or after it.

    Raises:
        InputError: config.json or summary.json cannot be read.
        OSError: there is no run.
    """
    samples, summary = folder / "samples", folder / "summary.json"
    log = read_log(folder / "metrics.csv")
    return RunRecord(
        folder=folder,
        config=read_document(folder / "config.json", dict[str, Any]),
        summary=read_document(summary, dict[str, Any]) if summary.is_file() else {},
        log={name: np.asarray(values) for name, values in log.items()} or {"step": np.empty(0)},
        before=_evaluation(samples, "before"),
        after=_evaluation(samples, "after"),
        controls={
            name: found
            for kind in ("best_of_", "guidance_")
            for name in _names(samples, kind)
            if (found := _evaluation(samples, name)) is not None
        },
    )


def _names(samples: Path, kind: str) -> list[str]:
    """Names of controls of a kind, by their numbers."""
    found = {}
    for path in samples.glob(f"evaluation_{kind}*.csv"):
        name = path.stem.removeprefix("evaluation_")
        try:
            found[float(name.removeprefix(kind))] = name
        except ValueError:  # a file of the user's
            continue
    return [found[number] for number in sorted(found)]


def _evaluation(samples: Path, name: str) -> Scores | None:
    path = samples / f"evaluation_{name}.csv"
    return read_evaluation(path) if path.is_file() else None
