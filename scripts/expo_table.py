"""Environment steps to success, EXPO and its peers: docs/results/expo_learning.csv.

For each task and seed: 40 demonstrations by two biased, precise operators (cloning reaches 20 to
50 %), one clone of them, and a run of `genpol train` for every arm from there, evaluated every
1,000 environment steps on 50 layouts that nobody trains on. A finished run adds its whole curve;
curves that are there are skipped, and a run that was cut off is resumed:

    python -m scripts.expo_table                        # everything, several sittings
    python -m scripts.expo_table --tasks push-v3 --seeds 0 1
    python -m scripts.expo_table --report               # the table of docs/RESULTS.md

All arms share critic, data, batch, updates per step and action chunks, but for those of which the
name says otherwise. What an arm may choose was chosen on seeds from 1000 up, see TUNED.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.results_table import Table, write_block
from scripts.training_runs import claimed, evaluations, finish

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "expo_learning.csv"
COLUMNS = (
    "task", "arm", "seed", "step", "episodes", "success", "low", "high", "return",
    "cpu_seconds", "flags",
)  # fmt: skip
# Between which metres each of a task's two operators errs, found on seeds from 1000 up: little
# enough that clones sometimes succeed, and enough that they mostly do not.
TASKS = {"pick-place-v3": (0.015, 0.028), "push-v3": (0.02, 0.03), "sweep-v3": (0.012, 0.022)}
TUNING_BIAS = (0.01, 0.035)  # of the seeds from 1000 up
LEVELS = (0.6, 0.8)  # success to reach, and to hold at the next evaluation as well
COLLECT: dict[str, Any] = {
    "episodes": 40,
    "operators": "two-mode",
    "noise": 0.05,
}
CLONE: dict[str, Any] = {"policy": "flow", "steps": 2000, "action_chunk": 4, "features": 256}
COMMON: dict[str, Any] = {
    "steps": 10_000,
    "batch_size": 128,
    "utd": 1.0,
    "n_step": 8,
    "target_rate": 0.02,
    "base_filter": "success",
    "action_chunk": 4,
    "features": 256,
    "value_ensemble": 5,
    "hidden": (256, 256),
    "num_candidates": 4,
    "reward": "zero-one",
    "reward_scale": 10.0,
    "init_temperature": 0.01,
    "eval_every": 1_000,
    "eval_episodes": 50,
    "checkpoint_every": 5_000,
    "wandb": "disabled",
}
MODEL: dict[str, Any] = {
    "model_hidden": (200, 200, 200),
    "model_updates": 300,
    "imagined_fraction": 0.25,
    "rollouts_per_step": 10,
}
# What differs. "base" starts from the clone; rlpd's Gaussian actor clones the same demonstrations.
ARMS: dict[str, dict[str, Any]] = {
    "expo": {"agent": "expo", "base": True},
    "bestofn": {"agent": "bestofn", "base": True},
    "rlpd": {"agent": "rlpd", "pretrain_steps": 0},
    "rlpd-step": {"agent": "rlpd", "pretrain_steps": 0, "action_chunk": 1},
    "rlpd-clone": {"agent": "rlpd", "pretrain_steps": 2000},
    "bc": {"agent": "bc", "base": True},
    "idql": {"agent": "idql", "base": True},
    "fql": {"agent": "fql", "base": True},
    "dsrl": {"agent": "dsrl", "base": True},
    # The same with cheaper candidates for targets: two steps of the chain, kept for 50 updates.
    "expo-cheap": {"agent": "expo", "base": True, "candidates": "two-step", "cache_age": 50},
    # The same with a world model.
    "expo-vagram": {
        "agent": "expo",
        "base": True,
        "world_model": "vagram",
        "ensemble": 3,
        "elites": 3,
        **MODEL,
    },
    "expo-spectral": {
        "agent": "expo",
        "base": True,
        "world_model": "mle",
        "ensemble": 1,
        "lipschitz": "spectral",
        "lipschitz_bound": 4.0,  # not tuned: see scripts.lipschitz_table --sweep
        **MODEL,
    },
}
# Looking one decision further by a model (three of squared error), taken out since; rows stay.
DROPPED = ("expo-search",)
# Arm -> settings chosen on seeds from 1000 up, see scripts.expo_tuning. An arm that is not here has
# not been through its stage OWN yet; that comes before its rows.
TUNED: dict[str, dict[str, Any]] = {
    "expo": {"edit_scale": 0.025},
    "expo-cheap": {"edit_scale": 0.025},
    "expo-vagram": {"edit_scale": 0.025},
    "expo-spectral": {"edit_scale": 0.025},
    "expo-search": {"edit_scale": 0.025},
    "bestofn": {"num_candidates": 4},
    "rlpd-clone": {"init_temperature": 0.01},
    "rlpd": {"init_temperature": 0.01},
    "rlpd-step": {"init_temperature": 0.001},
    "bc": {"base_lr": 3e-4},
    "idql": {"expectile": 0.8},
    "fql": {"fql_alpha": 30.0},
}
EVERY_TASK = ("expo", "rlpd-clone", "bestofn")  # five seeds each
# On the first task: arm -> seeds.
ONE_TASK = {arm: 3 for arm in ARMS if arm not in EVERY_TASK} | {"expo-cheap": 5}


class Cell:
    """The demonstrations and the clone of one task and seed."""

    def __init__(self, task: str, seed: int, work: Path) -> None:
        self.task, self.seed, self.env = task, seed, f"metaworld/{task}"
        self.folder = work / task / f"seed{seed}"

    def demos(self) -> Path:
        from genpol.commands.collect import command as collect

        path = self.folder / "demos.hdf5"
        if not path.exists():
            least, most = TASKS[self.task] if self.seed < 1000 else TUNING_BIAS
            bias = {"bias_min": least, "bias_max": most}
            collect.run(
                collect.Collect(env=self.env, output=path, seed=self.seed, **COLLECT, **bias)
            )
        return path

    def clone(self) -> Path:
        from genpol.commands import clone

        folder, partial = self.folder / "clone", self.folder / f"clone-{os.getpid()}"
        if not folder.exists():
            options = {"data": str(self.demos()), "seed": self.seed, "wandb": "disabled"}
            clone.run(clone.Clone(output=partial, **options, **CLONE))
            os.replace(partial, folder)
        return folder


def options_of(cell: Cell, arm: str, over: dict[str, Any]) -> dict[str, Any]:
    """The options of `genpol train` for one run."""
    options = COMMON | ARMS[arm] | TUNED.get(arm, {}) | over
    if options.pop("base", False):
        options["base"] = str(cell.clone())
    return options | {"env": cell.env, "data": str(cell.demos()), "seed": cell.seed}


def curve_of(
    cell: Cell,
    arm: str,
    threads: int,
    *,
    over: dict[str, Any] | None = None,
    name: str | None = None,
) -> list[dict[str, Any]]:
    """Run one arm to its end, or resume it; its evaluations as rows.

    Args:
        cell: whose demonstrations and clone.
        arm: one of ARMS.
        threads: of PyTorch.
        over: settings that win over the arm's.
        name: of the run's folder, default the arm's.
    """
    from genpol.reports.stats import wilson

    folder = cell.folder / (name or arm)
    with claimed(cell.folder / "clone", wait=True):  # demonstrations and clone are made once
        options = options_of(cell, arm, over or {})
    finish(folder, options, threads)
    flags = {k: v for k, v in options.items() if k not in ("env", "data", "base", "seed", "wandb")}
    rows = []
    for found in evaluations(folder):
        count = COMMON["eval_episodes"]
        low, high = wilson(round(found["eval/success"] * count), count)
        rows.append(
            {
                "task": cell.task, "arm": arm, "seed": cell.seed, "step": found["step"],
                "episodes": count, "success": found["eval/success"], "low": low, "high": high,
                "return": found["eval/return"], "cpu_seconds": found["time/cpu_seconds"],
                "flags": json.dumps(flags, sort_keys=True),
            }
        )  # fmt: skip
    return rows


def planned(options: argparse.Namespace) -> Iterable[tuple[str, str, int]]:
    """(task, arm, seed) in the order to run them: whole comparisons early."""
    for seed in range(5):
        for task in TASKS:
            for arm in EVERY_TASK:
                yield task, arm, seed
        for arm, seeds in ONE_TASK.items():
            if seed < seeds:
                yield next(iter(TASKS)), arm, seed


def fill(options: argparse.Namespace) -> None:
    """Finish every planned run that has no rows yet."""
    table = Table(options.results, COLUMNS)
    for task, arm, seed in planned(options):
        chosen = task in options.tasks and arm in options.arms and seed in options.seeds
        if not chosen or table.has(task=task, arm=arm, seed=seed):
            continue
        cell = Cell(task, seed, options.work)
        with claimed(cell.folder / arm) as mine:
            if not mine or table.has(task=task, arm=arm, seed=seed):
                continue
            rows = curve_of(cell, arm, options.threads)
            table.add(*rows)
        reached = steps_to_level([(r["step"], r["success"]) for r in rows])
        print(f"{task} {arm} seed {seed}: {reached} steps to {LEVELS[0]:.0%}", flush=True)


def steps_to_level(curve: list[tuple[int, float]], level: float = LEVELS[0]) -> float:
    """The first evaluation from which two in a row reach the level; infinity if none."""
    curve = sorted(curve)
    for (step, success), (_, following) in zip(curve, curve[1:], strict=False):
        if success >= level and following >= level:
            return step
    return float("inf")


@dataclass(frozen=True)
class Outcome:
    """The runs of one arm on one task, seed by seed."""

    steps: dict[float, list[float]]
    """To each level; infinity if never."""
    ends: dict[float, list[float]]
    """The same; the run's last step if never."""
    final: dict[int, float]
    """Seed -> mean success over the last five evaluations."""
    minutes: list[float]
    """CPU."""

    @classmethod
    def of(cls, rows: list[dict[str, str]]) -> Outcome:
        curves: dict[int, list[tuple[int, float]]] = {}
        seconds: dict[int, float] = {}
        for row in rows:
            seed = int(row["seed"])
            curves.setdefault(seed, []).append((int(row["step"]), float(row["success"])))
            seconds[seed] = max(seconds.get(seed, 0.0), float(row["cpu_seconds"]))
        final = {
            seed: float(np.mean([success for _, success in sorted(curve)[-5:]]))
            for seed, curve in sorted(curves.items())
        }
        ordered = [sorted(curves[seed]) for seed in final]
        steps = {x: [steps_to_level(curve, x) for curve in ordered] for x in LEVELS}
        ends = {
            x: [min(s, curve[-1][0]) for s, curve in zip(steps[x], ordered, strict=True)]
            for x in LEVELS
        }
        return cls(steps, ends, final, [second / 60 for second in seconds.values()])

    def less(self, other: Outcome) -> list[float]:
        """Success in the end less the other's, in points, of the seeds that both have."""
        both = self.final.keys() & other.final.keys()
        return [100 * (self.final[seed] - other.final[seed]) for seed in sorted(both)]


def report(rows: list[dict[str, str]]) -> str:
    """Markdown: steps to the level and final success by task and arm, with intervals."""
    from genpol.reports.stats import iqm, iqm_interval

    levels = " and ".join(f"{level:.0%}" for level in LEVELS)
    lines = [
        f"Environment steps until two evaluations in a row reach {levels} on 50 layouts, in how",
        "many of the runs, and success over the last five evaluations; interquartile mean over",
        "seeds with 95 % bootstrap intervals (`python -m scripts.expo_table`). Runs that never get",
        "there count with their last step, which favours them. Success at first is that of what",
        "acts: of EXPO and best-of-N the best by a critic that knows nothing yet.",
        "",
        "| task | arm | seeds | at first | "
        + " | ".join(f"steps to {level:.0%}" for level in LEVELS)
        + " | in the end | CPU minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found: dict[tuple[str, str], Outcome] = {}
    for task in TASKS:
        for arm in (*ARMS, *DROPPED):
            here = [row for row in rows if row["task"] == task and row["arm"] == arm]
            if not here:
                continue
            found[task, arm] = outcome = Outcome.of(here)
            first = np.mean([float(row["success"]) for row in here if row["step"] == "0"])
            cells = [task, arm, str(len(outcome.final)), f"{100 * first:.0f}"]
            for level in LEVELS:
                usual, few, many = iqm_interval(outcome.ends[level], np.random.default_rng(0))
                got = f"{sum(np.isfinite(outcome.steps[level]))}/{len(outcome.final)}"
                cells.append(f"{usual:,.0f} ({few:,.0f}-{many:,.0f}), {got}")
            final = list(outcome.final.values())
            middle, low, high = iqm_interval(final, np.random.default_rng(0))
            cells.append(f"{100 * middle:.0f} ({100 * low:.0f}-{100 * high:.0f})")
            cells.append(f"{np.mean(outcome.minutes):.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Steps that others need for each of EXPO's (interquartile means, at least one evaluation):",
        "",
    ]
    for task in TASKS:
        told = []
        for arm in EVERY_TASK[1:]:
            if (task, "expo") not in found or (task, arm) not in found:
                continue
            other, mine = found[task, arm], found[task, "expo"]
            for level in LEVELS:
                if not np.isfinite(mine.steps[level]).any():
                    continue
                bound = "" if np.isfinite(other.steps[level]).all() else "at least "
                least = COMMON["eval_every"]  # nothing is seen sooner
                ratio = max(iqm(other.ends[level]), least) / max(iqm(mine.ends[level]), least)
                told.append(f"{arm} {bound}{ratio:.1f} to {level:.0%}")
        if told:
            lines.append(f"- {task}: {', '.join(told)}.")
    lines += [
        "",
        "Success in the end less EXPO's on the same seeds, in points:",
        "",
    ]
    for task in TASKS:
        told = []
        for arm in (*ARMS, *DROPPED):
            if arm == "expo" or (task, arm) not in found or (task, "expo") not in found:
                continue
            points = found[task, arm].less(found[task, "expo"])
            if points:
                middle, low, high = iqm_interval(points, np.random.default_rng(0))
                told.append(f"{arm} {middle:+.0f} ({low:+.0f} to {high:+.0f})")
        if told:
            lines.append(f"- {task}: {', '.join(told)}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/expo_table"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="write the table of docs/RESULTS.md")
    options = parser.parse_args()
    if options.report:
        write_block("learning", report(Table(options.results, COLUMNS).rows()))
        return
    fill(options)


if __name__ == "__main__":
    main()
