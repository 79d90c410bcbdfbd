"""Fine-tuning by episodes beside EXPO and its peers: docs/results/episodes.csv.

For each task and training seed, the demonstrations and the clone of `scripts.expo_table` (same
commands, same seeds, same folder), and a run of `genpol train` for every arm from that clone, all
to the same number of environment steps:

    prdp, grpo, ddpo   rounds of episodes; the reward is success; no critic and no demonstrations
    expo, bestofn      as in the learning table: a critic, the replay and the demonstrations
    bc                 control: it imitates its own successes and those of the demonstrations
    base               control: the clone as it is, which is the first evaluation of bc

A finished run adds its whole curve; curves that are there are skipped, and a run that was cut off
is resumed:

    python -m scripts.episode_tables                        # everything, several sittings
    python -m scripts.episode_tables --tasks push-v3 --seeds 0 1
    python -m scripts.episode_tables --report               # the table of docs/RESULTS.md

A run by rounds ends with the round that reaches the number of steps, so its evaluations lie at
other steps than those of the others. Success at a number of steps is read off the line between the
evaluations before and after it, for every arm.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from scripts import expo_table
from scripts.expo_table import Cell
from scripts.results_table import Table, write_block
from scripts.training_runs import claimed, evaluations, finish

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "episodes.csv"
COLUMNS = (
    "task", "arm", "seed", "step", "episodes", "success", "low", "high", "return",
    "cpu_seconds", "flags",
)  # fmt: skip
TASKS = ("pick-place-v3", "push-v3")
SEEDS = (0, 1, 2)
STEPS = 50_000
SHOWN = (10_000, 25_000, STEPS)
EVALUATION: dict[str, Any] = {
    "steps": STEPS,
    "eval_every": 5_000,
    "eval_episodes": 50,
    "checkpoint_every": 5_000,
    "wandb": "disabled",
}
# Of all arms that learn by rounds. The rate is from a pilot on the shipped policy with seed 1000.
# At 3e-4 a round moved the policy by nearly 200 nats an episode, and it fell; at 3e-5 by up to 15.
# Success of the rounds' 48 episodes was then, in percent, 27, 42, 50, 25 with grpo and 27, 40, 52,
# 35, 75 with prdp: each on other layouts, so with a standard error of 7.
ROUNDS: dict[str, Any] = {
    "action_chunk": expo_table.CLONE["action_chunk"],
    "reward": "zero-one",
    "groups": 4,
    "group_size": 8,
    "inner_steps": 2,
    "base_lr": 3e-5,
    "num_envs": 8,
}
ARMS: dict[str, dict[str, Any]] = {
    "prdp": {"agent": "prdp", "beta": 0.1},
    "grpo": {"agent": "grpo", "kl_weight": 0.0},  # as ddpo, but for the advantages
    "ddpo": {"agent": "ddpo"},
    "expo": {},
    "bestofn": {},
    "bc": {},
}
BY_ROUNDS = ("prdp", "grpo", "ddpo")
LEARNERS = (*BY_ROUNDS, "expo", "bestofn")


def options_of(cell: Cell, arm: str) -> dict[str, Any]:
    """The options of `genpol train` for one run."""
    if arm not in BY_ROUNDS:
        return expo_table.options_of(cell, arm, EVALUATION)
    own = ROUNDS | ARMS[arm] | EVALUATION
    return own | {"env": cell.env, "base": str(cell.clone()), "seed": cell.seed}


def curve_of(cell: Cell, arm: str, threads: int) -> list[dict[str, Any]]:
    """Run one arm to its end, or resume it; its evaluations as rows."""
    from genpol.reports.stats import wilson

    folder, count = cell.folder / f"episodes-{arm}", EVALUATION["eval_episodes"]
    with claimed(cell.folder / "clone", wait=True):  # demonstrations and clone are made once
        options = options_of(cell, arm)
    finish(folder, options, threads)
    flags = {k: v for k, v in options.items() if k not in ("env", "data", "base", "seed", "wandb")}
    rows = []
    for found in evaluations(folder):
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


def planned() -> Iterable[tuple[str, str, int]]:
    """(task, arm, seed) in the order to run them: whole comparisons early."""
    for seed in SEEDS:
        for task in TASKS:
            for arm in ARMS:
                yield task, arm, seed


def fill(options: argparse.Namespace) -> None:
    """Finish every planned run that has no rows yet."""
    table = Table(options.results, COLUMNS)
    for task, arm, seed in planned():
        chosen = task in options.tasks and arm in options.arms and seed in options.seeds
        if not chosen or table.has(task=task, arm=arm, seed=seed):
            continue
        cell = Cell(task, seed, options.work)
        with claimed(cell.folder / f"episodes-{arm}") as mine:
            if not mine or table.has(task=task, arm=arm, seed=seed):
                continue
            rows = curve_of(cell, arm, options.threads)
            table.add(*rows)
        print(f"{task} {arm} seed {seed}: {rows[-1]['success']:.2f} in the end", flush=True)


def success_at(curve: list[tuple[int, float]], step: int) -> float:
    """Success at a number of steps, on the line between the evaluations around it."""
    steps, values = zip(*sorted(curve), strict=True)
    return float(np.interp(step, steps, values))


def report(rows: list[dict[str, str]]) -> str:
    """Markdown: success at fixed numbers of steps by task and arm, and the gap to EXPO; which runs
    are missing."""
    from genpol.reports.stats import iqm_interval

    found: dict[tuple[str, str], dict[int, list[tuple[int, float]]]] = {}
    minutes: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        key, seed = (row["task"], row["arm"]), int(row["seed"])
        point = int(row["step"]), float(row["success"])
        found.setdefault(key, {}).setdefault(seed, []).append(point)
        spent = minutes.setdefault(key, {})
        spent[seed] = max(spent.get(seed, 0.0), float(row["cpu_seconds"]) / 60)
    lines = [
        f"Success on {EVALUATION['eval_episodes']} layouts after a number of environment steps, in",
        "percent: mean over training seeds, and at the end its interquartile mean with a 95 %",
        "bootstrap interval over seeds. The last column is success at the end less EXPO's, in",
        "points, on the same seeds (`python -m scripts.episode_tables`). All arms of a seed start",
        "from the same clone and see the same evaluation layouts.",
        "",
        "| task | arm | seeds | at first | "
        + " | ".join(f"{step:,}" for step in SHOWN[:-1])
        + f" | {SHOWN[-1]:,} | minus EXPO | CPU minutes |",
        "|---|---|---" + "|---" * (len(SHOWN) + 3) + "|",
    ]
    for task in TASKS:
        if base := found.get((task, "bc")):
            first = [100 * sorted(curve)[0][1] for curve in base.values()]
            blank = " | " * (len(SHOWN) + 2)
            lines.append(f"| {task} | base | {len(base)} | {np.mean(first):.0f}{blank}|")
        for arm in ARMS:
            curves = found.get((task, arm))
            if not curves:
                continue
            cells = [task, arm, str(len(curves))]
            for step in (0, *SHOWN[:-1]):
                at = [100 * success_at(curve, step) for curve in curves.values()]
                cells.append(f"{np.mean(at):.0f}")
            end = {seed: 100 * success_at(curve, SHOWN[-1]) for seed, curve in curves.items()}
            middle, low, high = iqm_interval(list(end.values()), np.random.default_rng(0))
            cells.append(f"{middle:.0f} ({low:.0f}-{high:.0f})")
            cells.append(_less(end, found.get((task, "expo"), {})) if arm != "expo" else "")
            cells.append(f"{np.mean(list(minutes[task, arm].values())):.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *missing({key: set(curves) for key, curves in found.items()})])


def missing(found: dict[tuple[str, str], set[int]]) -> list[str]:
    """Lines that name the planned runs that there is no curve of, by the seeds that there are."""
    gone: dict[tuple[str, str], list[int]] = {}
    for task, arm, seed in planned():
        if seed not in found.get((task, arm), ()):
            gone.setdefault((task, arm), []).append(seed)
    if not gone:
        return []
    told = [
        f"{arm} on {task} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})"
        for (task, arm), seeds in gone.items()
    ]
    return ["", "Runs that are missing:", "", *(f"- {words}" for words in told)]


def _less(end: dict[int, float], expo: dict[int, list[tuple[int, float]]]) -> str:
    """Points above EXPO on the seeds that both have, with an interval."""
    from genpol.reports.stats import iqm_interval

    both = sorted(end.keys() & expo.keys())
    if not both:
        return ""
    points = [end[seed] - 100 * success_at(expo[seed], SHOWN[-1]) for seed in both]
    middle, low, high = iqm_interval(points, np.random.default_rng(0))
    return f"{middle:+.0f} ({low:+.0f} to {high:+.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/expo_table"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="write the table of docs/RESULTS.md")
    options = parser.parse_args()
    if options.report:
        write_block("episodes", report(Table(options.results, COLUMNS).rows()))
        return
    fill(options)


if __name__ == "__main__":
    main()
