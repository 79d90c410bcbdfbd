"""Reads the folder of a `genpol train` run, and gives the command that makes it again."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from genpol.agents.config import TrainConfig, usual
from genpol.reports.charts import Log, known, read_log
from genpol.training.outcomes import Outcomes, read_outcomes
from offline.documents import read_document
from offline.errors import InputError

WIDTH = 86  # characters of a page's line of code


@dataclass(frozen=True)
class TrainRecord:
    """What a run has left in its folder so far."""

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    """Empty until the run has ended."""
    log: Log
    outcomes: dict[int, Outcomes]
    """Of every evaluation, by step."""

    @property
    def measure(self) -> str:
        """The column that the run is judged by."""
        return "eval/success" if len(known(self.log, "eval/success")[0]) else "eval/return"

    @property
    def ends(self) -> tuple[int, int]:
        """Steps of the first and of the last evaluation."""
        steps = known(self.log, self.measure)[0]
        return int(steps[0]), int(steps[-1])

    @property
    def offline_updates(self) -> int:
        """Updates without environment steps, by which steps are counted first."""
        return int(self.config.get("offline_updates", 0))

    @property
    def unit(self) -> str:
        """What steps are."""
        return f"{'updates, then ' if self.offline_updates else ''}environment steps"

    def so_far(self, step: int) -> str:
        """How much had been done at a step, in words."""
        offline = min(step, self.offline_updates)
        parts = [f"{offline:,} updates before the first step"] if offline else []
        if step > offline or not parts:
            parts.append(f"{step - offline:,} environment steps")
        return " and ".join(parts)

    def at(self, name: str, step: int) -> float:
        """A column of the evaluation at `step`."""
        steps, values = known(self.log, name)
        return float(values[steps == step][0])


def read_run(folder: Path) -> TrainRecord:
    """Read what `genpol train` left in a folder.

    Raises:
        InputError: no such run, or it has not evaluated anything yet.
    """
    try:
        config = read_document(folder / "config.json", dict[str, Any])
        log = read_log(folder / "metrics.csv")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the training run in {folder}: {error}") from error
    if not len(known(log, "eval/return")[0]):
        raise InputError(f"{folder} has no evaluation to show yet: let it run on with --resume")
    summary = folder / "summary.json"
    return TrainRecord(
        folder,
        config,
        read_document(summary, dict[str, float | None]) if summary.exists() else {},
        log,
        read_outcomes(folder / "evaluations"),
    )


def commands(run: TrainRecord) -> str:
    """The run's own command, and those that follow."""
    config, folder = run.config, shlex.quote(str(run.folder.resolve()))
    lines = [same_again(run)]
    if (run.folder / "value").is_dir():
        env = shlex.quote(str(config["env"]))
        lines.append(f"genpol steer --policy {folder} --value {folder} --env {env}")
    more = 2 * int(config["steps"]) or TrainConfig.steps
    return "\n".join([*lines, f"genpol train --resume {folder} --steps {more}"])


def same_again(run: TrainRecord) -> str:
    """The run's own command, with the options that are not the defaults."""
    config = run.config
    defaults: dict[str, Any] = dict.fromkeys(("env", "data", "base", "value", "max_steps"))
    defaults |= {"distractors": 0} | {f.name: f.default for f in fields(TrainConfig)}
    defaults |= usual(
        config["agent"], config.get("world_model", "none"), data=bool(config.get("data"))
    )
    parts = [f"genpol train --agent {config['agent']}"]
    for name, default in defaults.items():
        given = _option(name, config.get(name, default))
        if name != "agent" and given != _option(name, default):
            parts.append(given)
    if (threads := config.get("threads") or 1) > 1:  # else the last bits may differ
        parts.append(_option("threads", threads))
    return _folded([*parts, "--output runs/again"])


def _option(name: str, value: Any) -> str:
    """A setting as on the command line; JSON has made lists of tuples."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    values = value if isinstance(value, (list, tuple)) else [value]
    texts = (f"{v:.12g}" if isinstance(v, float) else shlex.quote(str(v)) for v in values)
    return " ".join([f"--{flag}", *texts])


def _folded(parts: list[str]) -> str:
    """One command over several lines of a page's width."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) < WIDTH:
            lines[-1] += f" {part}"
        else:
            lines.append(f"    {part}")
    return " \\\n".join(lines)
