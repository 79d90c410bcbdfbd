"""Compare objectives at equal images: the tables and figures of docs/OBJECTIVES.md.

    python -m scripts.objective_tables tuning       # docs/results/objectives_tuning.csv
    python -m scripts.objective_tables prompts      # docs/results/objectives{,_curves}.csv
    python -m scripts.objective_tables beta         # docs/results/objectives_beta.csv
    python -m scripts.objective_tables --report     # pages and pictures, from the committed rows

A row is written when its run has ended, and a row that is there is skipped. Several processes may
run the same command at once; each takes runs that no other has begun.

Budget, set before the first run of a test seed: 512 images (8 epochs of 8 prompts, 8 images each)
and as many reward calls, for every arm. With twice as many, the first arms that were tuned ended
too near the end of the scale to tell arms apart. Every arm is tuned with four settings on seed 1000
with 256 prompts; the best by the gold score of 256 held-out prompts is what the tables use, on
seeds 0, 1 and 2. The controls are no training, and the best of K with no training: K = 2 makes 512
reward calls for the 256 held-out prompts.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offline.threads import use_threads
from scripts.objective_runs import Outcome, Run, best_of, carry_out
from scripts.results_table import Table
from scripts.training_runs import claimed

RESULTS = Path(__file__).parents[1] / "docs" / "results"
SEEDS, TUNING_SEED = (0, 1, 2), 1000
PROMPTS = (16, 256, 4_000, 100_000)
BEST_OF = (2, 8)
OFFSET_PROMPTS = (4_000,)
COLUMNS = (
    "model", "arm", "setting", "prompts", "offset", "seed", "images", "reward_before", "reward",
    "gold_before", "gold", "gold_gain", "gold_gain_se", "kl_nats", "cpu_seconds",
)  # fmt: skip
CURVE_COLUMNS = ("model", "arm", "seed", "images", "cpu_seconds", "gold")

TUNING = Table(RESULTS / "objectives_tuning.csv", COLUMNS)
COMPARED = Table(RESULTS / "objectives.csv", COLUMNS)
CURVES = Table(RESULTS / "objectives_curves.csv", CURVE_COLUMNS)
SWEPT = Table(RESULTS / "objectives_beta.csv", COLUMNS)

# An arm's fixed settings, and the grid it is tuned on: how fast it learns, and how often from the
# same images. PRDP's number of updates is in its name, so that it has more learning rates.
ARMS: dict[str, dict[str, Any]] = {
    "ddpo": {"algorithm": "ddpo"},
    "grpo": {"algorithm": "grpo"},
    "prdp": {"algorithm": "prdp", "inner_steps": 1, "beta": 1e-5},
    "prdp-10": {"algorithm": "prdp", "inner_steps": 10, "beta": 1e-5},
    "prdp-forward": {"algorithm": "prdp-forward", "beta": 0.3},
    "nft": {"algorithm": "nft", "mix": 0.1},
}
# What holds an objective to the reference: a temperature, a penalty, or how far it looks ahead.
HELD_BY: dict[str, tuple[str, tuple[float, ...]]] = {
    "prdp": ("beta", (0.03, 0.1, 0.3, 1.0)),
    "prdp-forward": ("beta", (0.03, 0.1, 0.3, 1.0)),
    "grpo": ("kl_weight", (0.0, 1.0, 10.0, 100.0)),
    "nft": ("mix", (0.03, 0.1, 0.3, 1.0)),
}
RATES = (1e-3, 2e-3)
RATES_AND_UPDATES: dict[str, tuple[Any, ...]] = {"learning_rate": RATES, "inner_steps": (1, 4)}
GRID: dict[str, dict[str, tuple[Any, ...]]] = {
    "ddpo": RATES_AND_UPDATES,
    "grpo": RATES_AND_UPDATES,
    "prdp": {"learning_rate": (1e-3, 2e-3, 4e-3, 8e-3)},
    "prdp-10": {"learning_rate": (2e-4, 5e-4, 1e-3, 2e-3)},
    "prdp-forward": RATES_AND_UPDATES,
    "nft": RATES_AND_UPDATES,
}


def grid(arm: str) -> Iterator[dict[str, Any]]:
    """The settings that an arm is tuned on."""
    names = list(GRID[arm])
    for values in itertools.product(*GRID[arm].values()):
        yield dict(zip(names, values, strict=True))


def named(settings: dict[str, Any]) -> str:
    """Settings in a cell: "learning_rate=0.001 beta=0.3"."""
    return " ".join(f"{name}={value:g}" for name, value in settings.items())


def row(run: Run, setting: str, outcome: Outcome) -> dict[str, Any]:
    gain = outcome.after["gold"].double() - outcome.before["gold"].double()
    return {
        "model": run.model,
        "arm": run.arm,
        "setting": setting,
        "prompts": run.prompts,
        "offset": int(run.offset),
        "seed": run.seed,
        "images": outcome.images,
        "reward_before": float(outcome.before["reward"].mean()),
        "reward": float(outcome.after["reward"].mean()),
        "gold_before": float(outcome.before["gold"].mean()),
        "gold": float(outcome.after["gold"].mean()),
        "gold_gain": float(gain.mean()),
        "gold_gain_se": float(gain.std() / len(gain) ** 0.5),
        "kl_nats": outcome.kl_nats,
        "cpu_seconds": outcome.cpu_seconds,
    }


def fill(table: Table, run: Run, setting: str, curve: Table | None = None) -> None:
    """Carry a run out unless its row is there, or another process is at it."""
    key = {"model": run.model, "arm": run.arm, "setting": setting, "prompts": run.prompts}
    key |= {"offset": int(run.offset), "seed": run.seed}
    claim = "-".join(str(value) for value in key.values()).replace(" ", "_")
    with claimed(Path("runs/objectives") / f"{table.path.stem}-{claim}") as mine:
        if not mine or table.has(**key):
            return
        candidates = run.arm.removeprefix("best of ")
        outcome = best_of(run, int(candidates)) if candidates != run.arm else carry_out(run)
        if curve is not None and outcome.curve:
            curve.add(
                *(
                    {
                        "model": run.model,
                        "arm": run.arm,
                        "seed": run.seed,
                        "images": outcome.images * point["epoch"] / run.epochs,
                        "cpu_seconds": point["cpu_seconds"],
                        "gold": point["gold"],
                    }
                    for point in outcome.curve
                )
            )
        table.add(row(run, setting, outcome))
        print(*row(run, setting, outcome).values(), flush=True)


def tune(model: str) -> None:
    for arm in sorted(GRID, key=lambda name: name == "prdp-10"):  # the dearest last
        for settings in grid(arm):
            run = Run(model, arm, ARMS[arm] | settings, 256, TUNING_SEED)
            fill(TUNING, run, named(settings))


def chosen(model: str, arm: str) -> dict[str, Any]:
    """The settings of an arm with the best gold score on the tuning seed.

    Raises:
        SystemExit: one of its settings has not been run.
    """
    scores = {
        row["setting"]: float(row["gold"])
        for row in TUNING.rows()
        if (row["model"], row["arm"]) == (model, arm)
    }
    tried = {named(settings): settings for settings in grid(arm)}
    if missing := [name for name in tried if name not in scores]:
        raise SystemExit(f"{model}, {arm}: tune first; {missing[0]} has not been run")
    return tried[max(tried, key=lambda name: scores[name])]


def best_arms(model: str, count: int) -> list[str]:
    """The arms with the best gold score after tuning."""
    rows = [row for row in TUNING.rows() if row["model"] == model]
    top = {arm: max(float(row["gold"]) for row in rows if row["arm"] == arm) for arm in ARMS}
    return sorted(ARMS, key=lambda arm: -top[arm])[:count]


def compare(model: str) -> None:
    """Gold against the number of prompts; best of K; a reward with an offset of each prompt."""
    arms = list(ARMS) if model == "tiny" else best_arms("tiny", 4)
    for seed in SEEDS:
        for count in BEST_OF:
            fill(COMPARED, Run(model, f"best of {count}", {}, 16, seed), "")
    cheap_first = sorted(arms, key=lambda name: name == "prdp-10")
    for seed, arm in itertools.product(SEEDS, cheap_first):
        best = chosen(model, arm)
        settings = ARMS[arm] | best
        for prompts in PROMPTS:
            whole = prompts == PROMPTS[-1]
            run = Run(model, arm, settings, prompts, seed, curve=whole)
            fill(COMPARED, run, named(best), CURVES)
        for prompts in OFFSET_PROMPTS if model == "tiny" else ():
            fill(COMPARED, Run(model, arm, settings, prompts, seed, offset=True), named(best))


def sweep(model: str) -> None:
    """Reward and KL over what holds each objective to the reference."""
    for arm, (name, values) in HELD_BY.items():
        for value, seed in itertools.product(values, SEEDS):
            settings = chosen(model, arm) | {name: value}
            fill(SWEPT, Run(model, arm, ARMS[arm] | settings, 100_000, seed), named(settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("table", nargs="?", choices=["tuning", "prompts", "beta"])
    parser.add_argument("--model", choices=["tiny", "tiny-flow"], default="tiny")
    parser.add_argument("--report", action="store_true", help="write the page from what is there")
    args = parser.parse_args()
    use_threads(1)
    if args.table is not None:
        {"tuning": tune, "prompts": compare, "beta": sweep}[args.table](args.model)
    if args.report:
        from scripts.objective_report import write

        write()


if __name__ == "__main__":
    main()
