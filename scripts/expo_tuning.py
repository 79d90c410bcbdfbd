"""Settings of the learning table, chosen on other seeds: docs/results/expo_tuning.csv.

Three stages on pick-place at seeds 1000 and 1001, demonstrations, clones and layouts of their own;
OWN of the arms that run on every task on push at seed 1000 as well. SHARED is what all arms have in
common, compared on best-of-N, which has the fewest settings of its own, and on RLPD. OWN is what
each arm may choose: three values for every arm, those that its paper or `docs/AGENTS.md` names.
BACKUP compares the ways to value the next action. The score is the mean success over all
evaluations of a run after the first, which rewards learning early.

    python -m scripts.expo_tuning --stage shared
    python -m scripts.expo_tuning --stage own
    python -m scripts.expo_tuning --report
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from scripts import expo_table
from scripts.results_table import Table
from scripts.training_runs import claimed

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "expo_tuning.csv"
COLUMNS = (
    "stage", "task", "arm", "setting", "seed", "mean_success", "final_success", "cpu_seconds",
)  # fmt: skip
CELLS = (("pick-place-v3", 1000), ("pick-place-v3", 1001))
SECOND = ("push-v3", 1000)  # of the arms that run on every task
STEPS = 5_000
SHARED: tuple[dict[str, Any], ...] = (
    {},
    {"base_filter": "success"},
    {"base_filter": "success", "target_rate": 0.005},
    {"base_filter": "success", "utd": 2.0},
    {"base_filter": "success", "critic_pretrain": "iql", "critic_pretrain_steps": 2000},
    {"base_filter": "success", "reward": "sparse", "reward_scale": 1.0},
)
SHARED_ARMS = ("bestofn", "rlpd-clone")
NO_BASE = ("rlpd", "rlpd-clone", "rlpd-step")  # to whom base_filter means nothing
OWN: dict[str, tuple[dict[str, Any], ...]] = {
    "expo": ({"edit_scale": 0.025}, {"edit_scale": 0.05}, {"edit_scale": 0.1}),
    "bestofn": ({"num_candidates": 4}, {"num_candidates": 8}, {"num_candidates": 16}),
    "rlpd-clone": (
        {"init_temperature": 0.001},
        {"init_temperature": 0.01},
        {"init_temperature": 0.1},
    ),
    "rlpd": ({"init_temperature": 0.001}, {"init_temperature": 0.01}, {"init_temperature": 0.1}),
    "rlpd-step": (
        {"init_temperature": 0.001},
        {"init_temperature": 0.01},
        {"init_temperature": 0.1},
    ),
    "bc": ({"base_lr": 1e-4}, {"base_lr": 3e-4}, {"base_lr": 1e-3}),
    "idql": ({"expectile": 0.7}, {"expectile": 0.8}, {"expectile": 0.9}),
    # The first three let the student leave the flow at once, so there is a fourth.
    "fql": ({"fql_alpha": 30.0}, {"fql_alpha": 0.1}, {"fql_alpha": 0.3}, {"fql_alpha": 1.0}),
}
BACKUP: tuple[dict[str, Any], ...] = (
    {"backup": "plain"},
    {"backup": "fresh"},
    {"backup": "decoupled"},
)


def planned(stage: str) -> list[tuple[str, int, str, dict[str, Any]]]:
    """(task, seed, arm, settings) of a stage."""
    if stage == "shared":
        pairs = [
            (arm, settings)
            for settings in SHARED
            for arm in SHARED_ARMS
            if not (arm in NO_BASE and settings == {"base_filter": "success"})
        ]
    elif stage == "backup":
        pairs = [("expo", settings) for settings in BACKUP]
    else:
        pairs = [(arm, settings) for arm, values in OWN.items() for settings in values]
    plan = [(*cell, *pair) for pair in pairs for cell in CELLS]
    if stage == "own":
        plan += [(*SECOND, *pair) for pair in pairs if pair[0] in expo_table.EVERY_TASK]
    return plan


def fill(options: argparse.Namespace) -> None:
    """Run what has no row yet."""
    table = Table(options.results, COLUMNS)
    for task, seed, arm, settings in planned(options.stage):
        text = json.dumps(settings, sort_keys=True)
        key = {"stage": options.stage, "task": task, "arm": arm, "setting": text, "seed": seed}
        chosen = arm in options.arms and task in options.tasks
        if not chosen or table.has(**key):
            continue
        cell, name = expo_table.Cell(task, seed, options.work), _name(arm, settings)
        with claimed(cell.folder / name) as mine:
            if not mine or table.has(**key):
                continue
            rows = expo_table.curve_of(
                cell, arm, options.threads, over=settings | {"steps": STEPS}, name=name
            )
            successes = [row["success"] for row in rows if row["step"]]
            table.add(
                key
                | {
                    "mean_success": float(np.mean(successes)),
                    "final_success": float(np.mean(successes[-2:])),
                    "cpu_seconds": rows[-1]["cpu_seconds"],
                }
            )
        print(f"{task} {arm} {text} seed {seed}: {np.mean(successes):.2f}", flush=True)


def _name(arm: str, settings: dict[str, Any]) -> str:
    return "-".join([arm, *(f"{k}={v}" for k, v in sorted(settings.items()))])


def report(rows: list[dict[str, str]]) -> str:
    """Each setting's score, the best of a stage and arm first."""
    lines = []
    groups = sorted({(row["stage"], row["arm"]) for row in rows}, reverse=True)
    for stage, arm in groups:
        of = [row for row in rows if (row["stage"], row["arm"]) == (stage, arm)]
        scores = {
            s: [float(row["mean_success"]) for row in of if row["setting"] == s]
            for s in dict.fromkeys(row["setting"] for row in of)
        }
        for setting, found in sorted(scores.items(), key=lambda item: -np.mean(item[1])):
            each = " ".join(f"{x:.2f}" for x in found)
            lines.append(f"{stage:7} {arm:11} {np.mean(found):.3f}  ({each})  {setting}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("shared", "own", "backup"), default="shared")
    parser.add_argument("--arms", nargs="+", default=list(OWN), choices=list(OWN))
    parser.add_argument("--tasks", nargs="+", default=["pick-place-v3", "push-v3"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/expo_tuning"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print the scores")
    options = parser.parse_args()
    if options.report:
        print(report(Table(options.results, COLUMNS).rows()))
        return
    fill(options)


if __name__ == "__main__":
    main()
