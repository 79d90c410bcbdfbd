"""Steering distilled into the weights of a policy: the table of docs/results/distilled.csv.

For each task and training seed, the demonstrations, the Cal-QL critic and the clones are those of
`scripts.steer_table` (same commands, same seeds, same folder), and the episodes have the same
initial states. On the stored observations of the demonstrations, and without the simulator,
`genpol train --agent prdp|prdp-forward|nft` fine-tunes the clone by the critic's value. Every arm
then faces the same 100 episodes:

    base          one sample of the clone
    steered       the best of 32 samples by softmax(value / 0.3), as in the table of steering
    prdp, ...     one sample of the policy that was fine-tuned by that objective
    filtered      one sample of a clone of the successful episodes

A row per finished arm; rows that are there are skipped, so the table can be filled over several
sittings and by several processes:

    python -m scripts.distilled_tables --seeds 0 1 2
    python -m scripts.distilled_tables --report      # the table of docs/RESULTS.md

Settings were chosen on seeds from 1000 up and on the shipped robot policy (seed 7).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from scripts.results_table import Table, write_block
from scripts.steer_cell import CHUNK, SETTINGS, Cell, genpol
from scripts.training_runs import claimed

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "distilled.csv"
TASKS = ("pick-place-v3", "push-v3", "sweep-v3")
POLICIES = ("diffusion", "flow")
SEEDS = (0, 1, 2)
CRITIC, CANDIDATES = "calql", 32
TITLES = {
    "base": "one sample",
    "steered": f"steered, K = {CANDIDATES}",
    "prdp": "prdp",
    "prdp-forward": "prdp-forward",
    "nft": "nft",
    "filtered": "filtered cloning",
}
ARMS = tuple(TITLES)
# What each objective learns with; beta is the temperature that steering has.
DISTILL: dict[str, dict[str, Any]] = {
    "prdp": {"offline_updates": 2000},
    "prdp-forward": {"offline_updates": 2000},
    "nft": {"offline_updates": 2000},
}
COLUMNS = (
    "task", "seed", "policy", "arm", "episodes", "successes", "success", "low", "high", "outcomes",
    "mean_length", "decision_ms", "value", "kl_nats", "train_seconds",
)  # fmt: skip
TIMED, WARM_UP, STATES = 200, 20, 20
WITHIN = 5.0  # points below steering that the target allows


class Distilled:
    """The arms of one cell of the steering table, those that are distilled among them.

    Args:
        cell: demonstrations, critic and clones.
        kind: of the policy.
        updates: of distilling; None takes those of DISTILL.
    """

    def __init__(self, cell: Cell, kind: str, updates: int | None = None) -> None:
        self.cell, self.kind, self.updates = cell, kind, updates

    def run(self, objective: str) -> Path:
        """The run folder of one objective, made when needed."""
        self.cell.value(CRITIC), self.cell.policy(self.kind)
        options = DISTILL[objective] | {"beta": SETTINGS["temperature"]}
        if objective == "nft":
            options.pop("beta")  # which it has not
        if self.updates is not None:
            options["offline_updates"] = self.updates

        def make(path: Path) -> None:
            words = [f"--{name.replace('_', '-')} {value}" for name, value in options.items()]
            genpol(
                "train --steps 0 --agent", objective, "--data", self.cell.demos(),
                "--base", self.cell.folder / self.kind, "--value", self.cell.folder / CRITIC,
                "--action-chunk", CHUNK, "--seed", self.cell.seed, "--eval-episodes 1",
                "--eval-every 1000000 --device cpu --wandb disabled --output", path, *words,
            )  # fmt: skip

        return self.cell.once(f"{self.kind}-{objective}", make)

    def policy(self, arm: str) -> tuple[Any, str]:
        """The policy of an arm, and the artefact whose training it is charged with."""
        from genpol.policies.policy import load_policy
        from genpol.steering.select import softmax
        from genpol.steering.steered import Steered

        if arm in DISTILL:
            return load_policy(self.run(arm)), f"{self.kind}-{arm}"
        if arm == "filtered":
            return self.cell.policy(self.kind, filtered=True), f"{self.kind}-filtered"
        base = self.cell.policy(self.kind)
        if arm == "base":
            return base, self.kind
        rule = softmax(SETTINGS["temperature"])
        return Steered(base, self.cell.value(CRITIC), CANDIDATES, rule), CRITIC

    def distance(self, arm: str) -> float:
        """KL from the clone in nats per chunk at the end of distilling; NaN of other arms, and of
        runs too short for a row."""
        from genpol.reports.charts import known, read_log

        if arm not in DISTILL:
            return float("nan")
        logged = known(read_log(self.run(arm) / "metrics.csv"), "kl/forward")[1]
        return float(logged[-1]) if len(logged) else float("nan")


def decision_ms(policy: Any, env: Any, repeats: int = TIMED) -> float:
    """Median milliseconds of a decision for one robot, over states that episodes begin in."""
    from torch import Generator

    from genpol.steering.paired_episodes import stack
    from robots.envs.make import layout_seed

    seeds = [layout_seed("latency", 0, i) for i in range(STATES)]
    observations = [stack([env.reset(seed=seed)[0]]) for seed in seeds]
    generator, seconds = Generator().manual_seed(0), []
    for i in range(WARM_UP + repeats):
        started = time.perf_counter()
        policy.sample(observations[i % STATES], 1, generator)
        seconds.append(time.perf_counter() - started)
    return 1e3 * float(np.median(seconds[WARM_UP:]))


def mean_value(policy: Any, distilled: Distilled, count: int = 512) -> float:
    """The critic's mean value of what a policy draws for stored observations."""
    import torch
    from torch import Generator

    from offline.data.transitions import Transitions
    from robots.datasets.open import open_dataset

    cell, clone = distilled.cell, distilled.cell.policy(distilled.kind)
    data = Transitions(open_dataset(cell.demos()), CHUNK, spec=clone.spec, reward="none")
    obs, value = data.sample(count, Generator().manual_seed(0)).obs, cell.value(CRITIC)
    act = policy.sample(obs, 4, Generator().manual_seed(0)).clamp(-1, 1)
    with torch.inference_mode():
        return float(value(obs, act).amin(0).mean())


def evaluate(
    distilled: Distilled, arm: str, episodes: int, envs: list[Any], parallel: int, timed: int
) -> dict[str, Any]:
    """One row of the table."""
    from genpol.reports.stats import wilson
    from genpol.steering.paired_episodes import run_episodes
    from robots.envs.make import layout_seed, make_env

    cell = distilled.cell
    policy, charged = distilled.policy(arm)
    rollouts = run_episodes(
        policy,
        lambda: make_env(cell.env),
        [layout_seed("evaluate", cell.seed, i) for i in range(episodes)],
        generator_seed=cell.seed,
        chunk=CHUNK,
        parallel=parallel,
        envs=envs,
    )
    wins = int(rollouts.success.sum())
    low, high = wilson(wins, episodes)
    return {
        "task": cell.task,
        "seed": cell.seed,
        "policy": distilled.kind,
        "arm": arm,
        "episodes": episodes,
        "successes": wins,
        "success": wins / episodes,
        "low": low,
        "high": high,
        "outcomes": "".join("01"[int(s)] for s in rollouts.success),
        "mean_length": float(rollouts.lengths.mean()),
        "decision_ms": decision_ms(policy, envs[0], timed),
        "value": mean_value(policy, distilled),
        "kl_nats": distilled.distance(arm),
        "train_seconds": cell.seconds(charged),
    }


def fill(options: argparse.Namespace) -> None:
    """Run every arm that has no row yet."""
    from offline.threads import use_threads

    use_threads(1)
    table = Table(options.results, COLUMNS)
    for seed in options.seeds:
        for task in options.tasks:
            cell, envs = Cell(task, seed, options.work), list[Any]()
            for kind in options.policies:
                distilled = Distilled(cell, kind, options.updates)
                for arm in options.arms:
                    key = {"task": task, "seed": seed, "policy": kind, "arm": arm}
                    with claimed(cell.folder / f"row-{kind}-{arm}") as mine:
                        if not mine or table.has(**key):
                            continue
                        row = evaluate(
                            distilled, arm, options.episodes, envs, options.parallel, options.timed
                        )
                        table.add(row)
                    print(
                        f"{task} seed {seed} {kind} {arm}: {row['success']:.2f} "
                        f"[{row['low']:.2f}, {row['high']:.2f}], value {row['value']:.2f}, "
                        f"{row['decision_ms']:.1f} ms",
                        flush=True,
                    )


# -- the report -----------------------------------------------------------------------------------


def missing(rows: Iterable[dict[str, str]]) -> list[str]:
    """Rows of the whole table that are not there, in words."""
    there = {(r["task"], r["policy"], r["seed"], r["arm"]) for r in rows}
    found = []
    for task in TASKS:
        for kind in POLICIES:
            for seed in SEEDS:
                arms = [a for a in ARMS if (task, kind, str(seed), a) not in there]
                if arms:
                    which = "all arms" if len(arms) == len(ARMS) else ", ".join(arms)
                    found.append(f"{task}, {kind}, seed {seed}: {which}")
    return found


def outcomes(rows: list[dict[str, str]]) -> dict[tuple[str, int], int]:
    """(seed, episode) -> success of one arm's rows."""
    return {(r["seed"], i): int(s) for r in rows for i, s in enumerate(r["outcomes"])}


def cell_of(rows: list[dict[str, str]]) -> str:
    """Success over all seeds with its interval, and the median time of a decision."""
    from genpol.reports.stats import wilson

    if not rows:
        return ""
    wins, count = (sum(int(r[name]) for r in rows) for name in ("successes", "episodes"))
    low, high = wilson(wins, count)
    took = float(np.median([float(r["decision_ms"]) for r in rows]))
    return f"{100 * wins / count:.0f} ({100 * low:.0f}-{100 * high:.0f}), {took:.1f} ms"


def differences(rows: list[dict[str, str]], other: str) -> list[str]:
    """Each distilled arm against another arm in points, over the episodes that both had."""
    from genpol.reports.stats import paired_difference

    lines = []
    for arm in DISTILL:
        for kind in POLICIES:
            a, b = {}, {}
            for task in TASKS:
                of = [r for r in rows if (r["task"], r["policy"]) == (task, kind)]
                for found, name in ((a, other), (b, arm)):
                    some = outcomes([r for r in of if r["arm"] == name])
                    found |= {(task, *key): value for key, value in some.items()}
            both = sorted(a.keys() & b.keys())
            if not both:
                continue
            first, second = ([100.0 * side[key] for key in both] for side in (a, b))
            mean, low, high = paired_difference(first, second, np.random.default_rng(0))
            verdict = ""
            if other == "steered":
                verdict = ": within the target" if low >= -WITHIN else (
                    ": below the target" if high < -WITHIN else ": the target is not settled"
                )  # fmt: skip
            lines.append(
                f"- {arm}, {kind}: {mean:+.1f} ({low:+.1f} to {high:+.1f}) over {len(both)} "
                f"episodes{verdict}."
            )
    return lines


def report(rows: list[dict[str, str]]) -> str:
    """Markdown: success by task, policy and arm with the time of a decision, and differences."""
    lines = [
        "Success in %, pooled over training seeds, with 95 % Wilson intervals, and the median time",
        "of a decision for one robot on one core; 100 paired episodes for each of seeds",
        f"{', '.join(map(str, SEEDS))}, the same initial states in every arm and in the table of "
        "steering (`python -m scripts.distilled_tables`):",
        "",
        "| task | policy | seeds | " + " | ".join(TITLES.values()) + " |",
        "|---" * (len(ARMS) + 3) + "|",
    ]
    for task in TASKS:
        for kind in POLICIES:
            found = [r for r in rows if (r["task"], r["policy"]) == (task, kind)]
            if not found:
                continue
            cells = [cell_of([r for r in found if r["arm"] == arm]) for arm in ARMS]
            seeds = len({r["seed"] for r in found})
            lines.append(f"| {task} | {kind} | {seeds} | " + " | ".join(cells) + " |")
    target = (
        f"Against steering in points, with 95 % bootstrap intervals over pairs. The target is at "
        f"most {WITHIN:.0f} below:"
    )
    for title, other in (
        (target, "steered"),
        ("Against one sample of the clone, in points:", "base"),
    ):
        if found := differences(rows, other):
            lines += ["", title, "", *found]
    if absent := missing(rows):
        lines += ["", f"Not run yet ({len(absent)}):", "", *(f"- {words}." for words in absent)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--parallel", type=int, default=50)
    parser.add_argument("--updates", type=int, help="of distilling; default those of the table")
    parser.add_argument("--timed", type=int, default=TIMED, help="decisions that are timed")
    parser.add_argument("--work", type=Path, default=Path("runs/steer_table"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="write the table of docs/RESULTS.md")
    options = parser.parse_args()
    if options.report:
        write_block("distilled", report(Table(options.results, COLUMNS).rows()))
        return
    fill(options)


if __name__ == "__main__":
    main()
