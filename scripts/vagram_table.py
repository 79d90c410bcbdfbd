"""Value-gradient weighted models against plain ones: docs/results/vagram.csv.

SAC learning from imagined transitions alike, whose models are large or small, see distracting
state dimensions or not, and learn by VaGraM's loss, squared error, or likelihood. The published
claim (arXiv 2204.01464, figures 2 and 3): equal with large models and no distractors, clearly
better with small models or with distractors.

    python -m scripts.vagram_table                     # several sittings and processes
    python -m scripts.vagram_table --report            # the README's table, from the rows
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from scripts.results_table import Table
from scripts.training_runs import table_command

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "vagram.csv"
METRICS = (
    "eval/return", "time/cpu_seconds", "model/holdout_mse", "model/reward_mse",
    "model/value_error", "model/value_error_relative", "vagram/dimensions",
)  # fmt: skip
KEY = ("env", "model", "distractors", "loss", "seed")
COLUMNS = (*KEY, "step", *METRICS, "flags")
SIZES = {"4x200": (200,) * 4, "3x64": (64,) * 3, "2x32": (32,) * 2}
PENDULUM, HOPPER = "InvertedPendulum-v5", "Hopper-v5"
# Published settings but for the updates per step (20 there) and the length of a run.
COMMON: dict[str, Any] = {
    "agent": "sac",
    "ensemble": 7,
    "elites": 5,
    "imagined_fraction": 0.95,
    "layer_norm": False,
    "eval_episodes": 10,
    "checkpoint_every": 5_000,
}
OF_ENV: dict[str, dict[str, Any]] = {
    PENDULUM: {
        "steps": 2_500,
        "start_steps": 500,
        "update_after": 500,
        "utd": 5.0,
        "policy_utd": 5.0,
        "rollouts_per_step": 40,
        "eval_every": 250,
        "vagram_warmup": 250,
    },
    HOPPER: {
        "steps": 15_000,
        "start_steps": 1_000,
        "update_after": 1_000,
        "utd": 5.0,
        "policy_utd": 5.0,
        "rollouts_per_step": 40,
        "eval_every": 1_000,
        "vagram_warmup": 1_000,
    },
}
# On Hopper the cells that tell: (model, distractors).
TELLING = (("4x200", 0), ("2x32", 0), ("4x200", 20))


def options_of(env: str, model: str, distractors: int, loss: str) -> dict[str, Any]:
    """Of `genpol train`."""
    from genpol.train_config import usual

    return (
        usual("sac", loss)
        | COMMON
        | OF_ENV[env]
        | {
            "env": env,
            "world_model": loss,
            "model_hidden": SIZES[model],
            "distractors": distractors,
        }
    )


def planned() -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    """Every run, whole comparisons early."""
    cells = [
        (seed, env, model, distractors, loss)
        for env, seeds, losses, pairs in (
            (
                PENDULUM,
                3,
                ("vagram", "mse", "mle"),
                [(m, d) for m in SIZES for d in (0, 10, 20)],
            ),
            (HOPPER, 5, ("vagram", "mse"), TELLING),
        )
        for seed in range(seeds)
        for model, distractors in pairs
        for loss in losses
    ]
    for seed, *cell in sorted(cells, key=lambda cell: cell[0]):  # stable: seed by seed
        key = dict(zip(KEY, (*cell, seed), strict=True))
        yield key, options_of(*cell)


def report(rows: list[dict[str, str]]) -> str:
    """Markdown: the return over the last half of each run, by cell and loss, with intervals."""
    from genpol.stats import iqm_interval

    lines = [
        "Mean return over the evaluations of the second half of a run; interquartile mean over",
        "seeds with 95 % bootstrap intervals (`python -m scripts.vagram_table`).",
        "",
        "| environment | model | distractors | VaGraM | squared error | likelihood | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    cells = dict.fromkeys((r["env"], r["model"], r["distractors"]) for r in rows)
    for cell in sorted(cells, key=lambda c: (c[0] != PENDULUM, c[1], int(c[2]))):
        shown, counts = [], set()
        for loss in ("vagram", "mse", "mle"):
            finals = []
            found = [r for r in rows if (r["env"], r["model"], r["distractors"]) == cell]
            found = [r for r in found if r["loss"] == loss]
            for seed in sorted({r["seed"] for r in found}):
                curve = [
                    (int(r["step"]), float(r["eval/return"])) for r in found if r["seed"] == seed
                ]
                last = max(step for step, _ in curve)
                finals.append(float(np.mean([y for step, y in curve if step > last / 2])))
            if not finals:
                shown.append("")
                continue
            counts.add(len(finals))
            middle, low, high = iqm_interval(finals, np.random.default_rng(0))
            shown.append(f"{middle:,.0f} ({low:,.0f}-{high:,.0f})")
        seeds = "/".join(str(count) for count in sorted(counts))
        lines.append(f"| {' | '.join(cell)} | {' | '.join(shown)} | {seeds} |")
    return "\n".join(lines)


def main() -> None:
    table = Table(RESULTS, COLUMNS)
    table_command(__doc__, table, lambda work: planned(), report, metrics=METRICS, marker="vagram")


if __name__ == "__main__":
    main()
