"""One value function, five policies: the table of docs/results/steering.csv.

For each task and training seed: collect demonstrations of clean and sloppy operators, train one
Cal-QL and one IQL critic on them, clone five policies (ours: Gaussian, diffusion, flow; robomimic's
RNN-GMM, trained by robomimic; a Flax transformer in Octo's layout), and let every policy face the
same initial states in every arm. A row per finished arm; rows that are there are skipped, so the
table can be filled over several sittings:

    python -m scripts.steer_table --seeds 0 1 2
    python -m scripts.steer_table --report        # the table of docs/RESULTS.md

Arms are those of ARMS: steering by either critic at temperature 0.3, by the other ones named.

Settings were chosen on training seeds from 1000 up, never on those of the table, and without
hammer-v3 and peg-insert-side-v3.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from scripts.results_table import Table, write_block
from scripts.steer_cell import CHUNK, SETTINGS, Cell

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "steering.csv"
# With "@random" the sloppy operator errs towards a random side in each episode, which cloning
# averages out: a control where there is less to gain.
TASKS = ("pick-place-v3", "push-v3", "sweep-v3", "pick-place-v3@random")
POLICIES = ("gaussian", "diffusion", "flow", "robomimic", "octo")
ARMS = (
    "base",
    "calql",
    "calql-t1",
    "calql-argmax",
    "iql",
    "iql-argmax",
    "mode",
    "random",
    "filtered",
)
TITLES = {
    "base": "one sample",
    "calql": "Cal-QL, T .3",
    "calql-t1": "Cal-QL, T 1",
    "calql-argmax": "Cal-QL, best",
    "iql": "IQL, T .3",
    "iql-argmax": "IQL, best",
    "mode": "mode decoding",
    "random": "random of K",
    "filtered": "filtered cloning",
}
COLUMNS = (
    "task",
    "seed",
    "policy",
    "arm",
    "episodes",
    "successes",
    "success",
    "low",
    "high",
    "outcomes",
    "mean_length",
    "fell_back",
    "spread",
    "train_seconds",
    "eval_seconds",
)
CANDIDATES = 32
CONTROL = "Where sloppy operators err towards a random side in each episode (@random):"


def arm_policy(cell: Cell, kind: str, arm: str) -> tuple[Any, str]:
    """The policy of one arm, and the name of the artefact whose training it is charged with."""
    from genpol.steering.paired_episodes import Mode
    from genpol.steering.select import argmax, random_choice, softmax
    from genpol.steering.steered import Steered

    if arm == "filtered":
        return cell.policy(kind, filtered=True), f"{kind}-filtered"
    base = cell.policy(kind)
    if arm == "base":
        return base, kind
    if arm == "mode":
        return Mode(base, CANDIDATES), kind
    if arm == "random":
        return Steered(base, cell.value("calql"), CANDIDATES, random_choice()), kind
    critic, _, rule = arm.partition("-")
    temperature = float(rule.removeprefix("t")) if rule.startswith("t") else SETTINGS["temperature"]
    select = argmax() if rule == "argmax" else softmax(temperature)
    return Steered(base, cell.value(critic), CANDIDATES, select), critic


def evaluate(
    cell: Cell, kind: str, arm: str, episodes: int, envs: list[Any], parallel: int
) -> dict[str, Any]:
    """One row of the table."""
    from genpol.reports.stats import wilson
    from genpol.steering.paired_episodes import run_episodes
    from robots.envs.make import layout_seed, make_env

    policy, charged = arm_policy(cell, kind, arm)
    started = time.process_time()
    rollouts = run_episodes(
        policy,
        lambda: make_env(cell.env),
        [layout_seed("evaluate", cell.seed, i) for i in range(episodes)],
        generator_seed=cell.seed,
        chunk=CHUNK,
        parallel=parallel,
        envs=envs,
    )
    low, high = wilson(int(rollouts.success.sum()), episodes)
    return {
        "task": cell.task,
        "seed": cell.seed,
        "policy": kind,
        "arm": arm,
        "episodes": episodes,
        "successes": int(rollouts.success.sum()),
        "success": float(rollouts.success.mean()),
        "low": low,
        "high": high,
        "outcomes": "".join("01"[int(s)] for s in rollouts.success),
        "mean_length": float(rollouts.lengths.mean()),
        "fell_back": rollouts.fell_back,
        "spread": rollouts.spread,
        "train_seconds": cell.seconds(charged),
        "eval_seconds": time.process_time() - started,
    }


def fill(options: argparse.Namespace) -> None:
    """Run every arm that has no row yet."""
    from offline.threads import use_threads

    use_threads(options.threads)
    table = Table(options.results, COLUMNS)
    for seed in options.seeds:
        for task in options.tasks:
            cell, envs = Cell(task, seed, options.work), []
            for kind in options.policies:
                for arm in options.arms:
                    if table.has(task=task, seed=seed, policy=kind, arm=arm):
                        continue
                    row = evaluate(cell, kind, arm, options.episodes, envs, options.parallel)
                    table.add(row)
                    print(
                        f"{task} seed {seed} {kind} {arm}: {row['success']:.2f} "
                        f"[{row['low']:.2f}, {row['high']:.2f}] {row['eval_seconds']:.0f} s",
                        flush=True,
                    )


def complete(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of those (task, seed, policy) that have every arm: columns can be compared."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["seed"], row["policy"]), []).append(row)
    return [
        row for group in groups.values() if {r["arm"] for r in group} >= set(ARMS) for row in group
    ]


def report(rows: Iterable[dict[str, str]]) -> str:
    """Markdown: success by task, policy and arm, pooled over the training seeds, with intervals."""
    from genpol.reports.stats import wilson

    rows = complete(rows)
    arms = [arm for arm in ARMS if any(row["arm"] == arm for row in rows)]
    head = [TITLES[arm] for arm in arms]
    seeds = sorted({int(row["seed"]) for row in rows})
    lines = [
        "Success in %, pooled over training seeds, with 95 % Wilson intervals; 100 paired episodes",
        f"for each seed ({', '.join(map(str, seeds))}), the same initial states in every arm, K = "
        f"{CANDIDATES} (`python -m scripts.steer_table`):",
        "",
        "| task | policy | seeds | " + " | ".join(head) + " |",
        "|---" * (len(arms) + 3) + "|",
    ]
    gains: dict[tuple[bool, str], list[float]] = {}  # (is it the control?, arm) -> points
    for task in dict.fromkeys(row["task"] for row in rows):
        for kind in POLICIES:
            found = [r for r in rows if (r["task"], r["policy"]) == (task, kind)]
            if not found:
                continue
            cells, shares = [], {}
            for arm in arms:
                of_arm = [r for r in found if r["arm"] == arm]
                count = sum(int(r["episodes"]) for r in of_arm)
                if not count:
                    cells.append("")
                    continue
                wins = sum(int(r["successes"]) for r in of_arm)
                low, high = wilson(wins, count)
                shares[arm] = 100 * wins / count
                cells.append(f"{shares[arm]:.0f} ({100 * low:.0f}-{100 * high:.0f})")
            number = len({r["seed"] for r in found})
            lines.append(f"| {task} | {kind} | {number} | " + " | ".join(cells) + " |")
            for arm in ("calql", "iql", "mode", "filtered"):
                if "base" in shares and arm in shares:
                    key = ("@" in task, arm)
                    gains.setdefault(key, []).append(shares[arm] - shares["base"])
    for control in sorted({control for control, _ in gains}):
        lines += ["", CONTROL if control else "Against one sample, in points:", ""]
        for arm in ("calql", "iql", "mode", "filtered"):
            points = gains[control, arm]
            lines.append(
                f"- {TITLES[arm]}: {np.mean(points):+.1f} on average, from {min(points):+.0f} to "
                f"{max(points):+.0f} over {len(points)} pairs of task and policy."
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--parallel", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/steer_table"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON, over SETTINGS")
    parser.add_argument("--report", action="store_true", help="write the table of docs/RESULTS.md")
    options = parser.parse_args()
    if options.report:
        write_block("steering", report(Table(options.results, COLUMNS).rows()))
        return
    SETTINGS.update(options.settings)
    fill(options)


if __name__ == "__main__":
    main()
