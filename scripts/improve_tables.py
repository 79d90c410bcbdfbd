"""A robot that gets better where it is deployed: docs/results/improve.csv.

metaworld in a process of its own plays the robot, through openpi's client alone. A frozen flow
clone of operators who err is the policy, behind a server of its own. `genpol improve` stands in
between. What the robot has succeeded in is measured before, and after 50, 100 and 200 of its own
episodes, on 50 layouts that it is never deployed on, the same for every arm of a task and seed:

    policy      the frozen policy as it is
    demos       steered by a value of the demonstrations alone, which are all successes
    value       the loop, a value alone
    expo        the loop, a value and edits
    filtered    the policy cloned anew from demonstrations and successes of the episodes of `value`
    wrong       as value, where the robot's word on success is wrong in 10 % of the episodes
    half-wrong  as value, where it says anything in half of the episodes only, and 10 % of that is
                wrong

    python -m scripts.improve_tables                          # everything, several sittings
    python -m scripts.improve_tables --tasks push-v3 --seeds 0
    python -m scripts.improve_tables --report                 # the table of docs/RESULTS.md

A finished measurement adds its row; rows that are there are skipped, and a loop that was stopped
goes on where it was. push-v3@images is push-v3 of which everybody sees pictures of 64 pixels only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.improve_cell import Cell, Loop, Settings, served
from scripts.results_table import Table, write_block
from scripts.training_runs import claimed

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "improve.csv"
COLUMNS = (
    "task", "seed", "arm", "episodes", "evaluated", "successes", "success", "low", "high",
    "outcomes", "deployed_success", "versions", "wall_seconds", "cpu_seconds", "settings",
)  # fmt: skip
IMAGES = "@images"
# Task -> what its settings differ in.
TASKS: dict[str, dict[str, Any]] = {
    "push-v3": {},
    "pick-place-v3": {},
    f"push-v3{IMAGES}": {"image_size": 64, "value_options": "--batch-size 64"},
}
MILESTONES = (50, 100, 200)
SEEDS = (0, 1, 2)
# Arm of the loop -> (what is learnt, share of episodes with a label, share of wrong labels).
LOOPS: dict[str, tuple[str, float, float]] = {
    "value": ("value", 1.0, 0.0),
    "expo": ("expo", 1.0, 0.0),
    "wrong": ("value", 1.0, 0.1),
    "half-wrong": ("value", 0.5, 0.1),
}
ARMS = ("policy", "demos", "value", "filtered", "expo", "wrong", "half-wrong")
WITH_IMAGES = ("policy", "demos", "value", "filtered")
BEFORE = ("policy", "demos")  # they know no episode of the robot's own
TARGET, BY, AHEAD = 0.6, 100, 0.2  # success by so many episodes, and so much ahead of demos


def planned() -> Iterable[tuple[str, int, str, int]]:
    """(task, seed, arm, episodes) in the order to run them: whole comparisons early."""
    for seed in SEEDS:
        for task in TASKS:
            for arm in ARMS:
                if IMAGES in task and arm not in WITH_IMAGES:
                    continue
                for episodes in (0,) if arm in BEFORE else MILESTONES:
                    yield task, seed, arm, episodes


def make_cell(task: str, seed: int, options: argparse.Namespace) -> Cell:
    """The cell of one task and seed."""
    name = task.removesuffix(IMAGES)
    env = name if ":" in name else f"metaworld/{name}"
    settings = replace(Settings(), **{**TASKS.get(task, {}), **options.settings})
    return Cell(env, seed, options.work / task / f"seed{seed}", settings, options.threads)


def measure(cell: Cell, arm: str, episodes: int) -> dict[str, Any]:
    """One row of the table: plays what has not been played yet, and evaluates."""
    name, spent, deployed, versions = f"{arm}-{episodes}", {"wall": 0.0, "cpu": 0.0}, np.nan, 0
    with cell.policy_server() as upstream:
        if arm == "policy":
            outcomes = cell.evaluate(upstream, name)
        elif arm == "demos":
            value = cell.demos_value()
            spent = cell.spent("demos-value")
            outcomes = steered(cell, upstream, ["--value", str(value)], name)
        else:
            of = "value" if arm == "filtered" else arm
            learn, labelled, wrong = LOOPS[of]
            loop = Loop(cell, f"loop-{of}", learn, labelled, wrong)
            if not (loop.folder / f"after-{episodes}").exists():
                loop.play(upstream, episodes)
                (loop.folder / f"spent-{episodes}.json").write_text(json.dumps(loop.spent()))
            run, recording = loop.keep(episodes)
            rows = loop.rows()[:episodes]
            deployed = float(np.mean([row["success"] == "1" for row in rows]))
            if arm == "filtered":
                clone = cell.filtered(recording, f"filtered-{episodes}")
                spent = cell.spent(f"filtered-{episodes}")
                log = cell.folder / "filtered.log"
                with served(["serve", "--policy", str(clone), "--rate-limit", "1e6"], log) as url:
                    outcomes = cell.evaluate(url, name)
            else:
                spent = json.loads((loop.folder / f"spent-{episodes}.json").read_text())
                versions = len({row["version"] for row in rows})
                edits = (run / "edit").is_dir()
                outcomes = steered(
                    cell, upstream, ["--edit" if edits else "--value", str(run)], name
                )
    return row_of(outcomes) | {
        "deployed_success": deployed,
        "versions": versions,
        "wall_seconds": spent["wall"],
        "cpu_seconds": spent["cpu"],
    }


def steered(cell: Cell, upstream: str, chosen: list[str], name: str) -> list[bool]:
    """Outcomes of the policy, of whose answers the best is taken."""
    words = [
        "serve", "--upstream", upstream, *chosen, "--num-candidates",
        str(cell.settings.candidates), "--temperature", "0", "--env", cell.env, "--rate-limit",
        "1e6",
    ]  # fmt: skip
    with served(words, cell.folder / "evaluations" / f"{name}.log") as url:
        return cell.evaluate(url, name)


def row_of(outcomes: list[bool]) -> dict[str, Any]:
    """The columns of an evaluation."""
    from genpol.reports.stats import wilson

    low, high = wilson(sum(outcomes), len(outcomes))
    return {
        "evaluated": len(outcomes),
        "successes": sum(outcomes),
        "success": float(np.mean(outcomes)),
        "low": low,
        "high": high,
        "outcomes": "".join("01"[won] for won in outcomes),
    }


def fill(options: argparse.Namespace) -> None:
    """Finish every planned measurement that has no row yet."""
    table = Table(options.results, COLUMNS)
    for task, seed, arm, episodes in planned():
        chosen = task in options.tasks and arm in options.arms and seed in options.seeds
        key = {"task": task, "seed": seed, "arm": arm, "episodes": episodes}
        if not chosen or episodes > options.most or table.has(**key):
            continue
        cell = make_cell(task, seed, options)
        # One measurement of a cell at a time: they share demonstrations, clones and loops.
        with claimed(cell.folder / "cell") as mine:
            if not mine or table.has(**key):
                continue
            found = measure(cell, arm, episodes)
            settings = json.dumps(vars(cell.settings), sort_keys=True)
            table.add(key | found | {"settings": settings})
        print(f"{task} seed {seed} {arm} after {episodes}: {found['success']:.0%}", flush=True)


# -- the report


def report(rows: list[dict[str, str]]) -> str:
    """Markdown: success by arm and number of episodes, whether the target is met, what is
    missing."""
    from genpol.reports.stats import wilson

    found = {(row["task"], int(row["seed"]), row["arm"], int(row["episodes"])): row for row in rows}
    lines = [
        f"Success in %, on {Settings().evaluated} layouts for each training seed on which no robot",
        "is deployed, pooled over seeds, with 95 % Wilson intervals; the layouts are the same in",
        "every arm. The last columns are of the loop up to its last measurement: minutes of the",
        "clock and of the processor, with the simulator (`python -m scripts.improve_tables`).",
        "",
        "| task | arm | seeds | 0 | " + " | ".join(map(str, MILESTONES)) + " | clock | processor |",
        "|---" * (6 + len(MILESTONES)) + "|",
    ]
    for task in TASKS:
        for arm in ARMS:
            of_arm = {key: row for key, row in found.items() if key[0] == task and key[2] == arm}
            if not of_arm:
                continue
            cells = []
            for episodes in (0, *MILESTONES):
                at = [row for key, row in of_arm.items() if key[3] == episodes]
                wins = sum(int(row["successes"]) for row in at)
                count = sum(int(row["evaluated"]) for row in at)
                low, high = wilson(wins, count)
                cells.append(
                    f"{100 * wins / count:.0f} ({100 * low:.0f}-{100 * high:.0f})" if count else ""
                )
            last = max(key[3] for key in of_arm)
            at = [row for key, row in of_arm.items() if key[3] == last]
            minutes = [
                f"{np.mean([float(row[name]) for row in at]) / 60:.0f}"
                for name in ("wall_seconds", "cpu_seconds")
            ]
            seeds = len({key[1] for key in of_arm})
            lines.append(f"| {task} | {arm} | {seeds} | {' | '.join([*cells, *minutes])} |")
    lines += ["", *targets(found)]
    return "\n".join([*lines, *missing(set(found))])


def targets(found: dict[tuple[str, int, str, int], dict[str, str]]) -> list[str]:
    """For each task and loop: success after BY episodes beside the target, and ahead of demos."""
    lines = [
        f"The target is {TARGET:.0%} within {BY} episodes, and {100 * AHEAD:.0f} points ahead of "
        "the value of the demonstrations alone, on the same seeds:",
        "",
    ]
    for task in TASKS:
        for arm in LOOPS:
            ours = {s: r for (t, s, a, n), r in found.items() if (t, a, n) == (task, arm, BY)}
            theirs = {s: r for (t, s, a, n), r in found.items() if (t, a) == (task, "demos")}
            both = sorted(set(ours) & set(theirs))
            if not both:
                continue
            success = np.mean([float(ours[s]["success"]) for s in both])
            ahead = success - np.mean([float(theirs[s]["success"]) for s in both])
            said = "met" if success >= TARGET and ahead >= AHEAD else "not met"
            lines.append(
                f"- {task}, {arm}: {success:.0%}, {100 * ahead:+.0f} points over {len(both)} "
                f"seeds: {said}."
            )
    return lines


def missing(found: set[tuple[str, int, str, int]]) -> list[str]:
    """Lines that name the planned measurements that have no row."""
    gone: dict[tuple[str, str], list[str]] = {}
    for task, seed, arm, episodes in planned():
        if (task, seed, arm, episodes) not in found:
            gone.setdefault((task, arm), []).append(f"{seed}/{episodes}")
    if not gone:
        return []
    lines = ["", "No rows yet (seed/episodes):", ""]
    return lines + [f"- {task}, {arm}: {', '.join(which)}" for (task, arm), which in gone.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--most", type=int, default=max(MILESTONES), help="episodes of a loop")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/improve_tables"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON, over Settings")
    parser.add_argument("--report", action="store_true", help="write the table of docs/RESULTS.md")
    options = parser.parse_args()
    if options.report:
        write_block("improve", report(Table(options.results, COLUMNS).rows()))
        return
    fill(options)


if __name__ == "__main__":
    main()
