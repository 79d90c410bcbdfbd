"""Value-gradient weighted models against plain ones: docs/results/vagram.csv.

SAC learning from imagined transitions alike, whose models are large or small, see distracting
state dimensions or not, and learn by VaGraM's loss, squared error, or likelihood. The published
claim (arXiv 2204.01464, figures 2 and 3): equal with large models and no distractors, clearly
better with small models or with distractors.

    python -m scripts.vagram_table                     # several sittings and processes
    python -m scripts.vagram_table --report            # the table of docs/RESULTS.md
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
PENDULUM, HOPPER = "Pendulum-v1", "Hopper-v5"
# Smaller batches and fewer updates than published, so that the table takes hours and not weeks. The
# critic has this kit's LayerNorm: without it nothing learnt beside 20 distractors, at seed 1002.
COMMON: dict[str, Any] = {
    "agent": "sac",
    "ensemble": 7,
    "elites": 5,
    "imagined_fraction": 0.95,
    "hidden": (128, 128),
    "batch_size": 128,
    "lr": 1e-3,
    "target_rate": 0.02,
    "policy_utd": 2.0,
    "model_every": 500,
    "model_updates": 400,
    "rollouts_per_step": 40,
    # As when the rows were measured: five trainings of the model are kept, and observations are
    # standardised by what random actions show.
    "imagined_capacity": 100_000,
    "follow_statistics": False,
    "eval_every": 500,
    "eval_episodes": 10,
    "vagram_warmup": 1_000,
    "checkpoint_every": 5_000,
}
OF_ENV: dict[str, dict[str, Any]] = {
    PENDULUM: {
        "steps": 4_000,
        "start_steps": 500,
        "update_after": 500,
        "utd": 2.0,
    },
    HOPPER: {
        "steps": 5_000,
        "start_steps": 1_000,
        "update_after": 1_000,
        "utd": 4.0,
    },
}
STATES = {PENDULUM: 3, HOPPER: 11}  # dimensions
# On Hopper the cells that tell: (model, distractors).
TELLING = (("4x200", 0), ("2x32", 0), ("4x200", 20))


def options_of(env: str, model: str, distractors: int, loss: str) -> dict[str, Any]:
    """Of `genpol train`."""
    from genpol.agents.config import usual

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


LOSSES = {"vagram": "VaGraM", "mse": "squared error", "mle": "likelihood"}
GROUPS = {
    "large models, no distractors": lambda model, distractors: model == "4x200" and not distractors,
    "small models, no distractors": lambda model, distractors: model != "4x200" and not distractors,
    "distractors": lambda model, distractors: distractors > 0,
}  # the published claim: about equal, better, better


def late_return(run: list[dict[str, str]]) -> float:
    """The mean return over the evaluations of the second half of a run."""
    curve = [(int(row["step"]), float(row["eval/return"])) for row in run]
    last = max(step for step, _ in curve)
    return float(np.mean([value for step, value in curve if step > last / 2]))


def report(rows: list[dict[str, str]]) -> str:
    """Markdown: late returns by cell and loss, VaGraM's less the others', what the models know."""
    runs: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        runs.setdefault(tuple(row[name] for name in KEY), []).append(row)
    found: Cells = {}
    for (env, model, distractors, loss, seed), run in runs.items():
        cell = found.setdefault((env, model, int(distractors)), {})
        cell.setdefault(loss, {})[seed] = late_return(run)
    return "\n".join([*_returns(found), *_differences(found), *_knowledge(runs)])


Cells = dict[tuple[str, str, int], dict[str, dict[str, float]]]  # -> loss -> seed -> return


def _interval(values: Any, form: str) -> str:
    from genpol.reports.stats import iqm_interval

    numbers = iqm_interval(values, np.random.default_rng(0))
    middle, low, high = (format(round(number), form) for number in numbers)
    return f"{middle} ({low} to {high})"


def _returns(found: Cells) -> Iterable[str]:
    yield "Mean return over the evaluations of the second half of a run; interquartile mean over"
    yield "seeds with 95 % bootstrap intervals (`python -m scripts.vagram_table`)."
    yield ""
    yield f"| environment | model | distractors | {' | '.join(LOSSES.values())} | seeds |"
    yield "|---|---|---|---|---|---|---|"
    order = [(env, model, n) for env in STATES for model in SIZES for n in (0, 10, 20)]
    for cell in (cell for cell in order if cell in found):
        losses = found[cell]
        shown = [
            _interval(list(losses[loss].values()), ",") if loss in losses else "" for loss in LOSSES
        ]
        counts = sorted({len(seeds) for seeds in losses.values()})
        cells = [*map(str, cell), *shown, "/".join(map(str, counts))]
        yield f"| {' | '.join(cells)} |"


def _differences(found: Cells) -> Iterable[str]:
    yield ""
    yield "VaGraM's less the others' of the same seeds, over cells and seeds:"
    yield ""
    for env in STATES:
        for name, inside in GROUPS.items():
            told = []
            for other in ("mse", "mle"):
                less = []
                for (where, model, distractors), losses in found.items():
                    both = losses.get("vagram", {}).keys() & losses.get(other, {}).keys()
                    if where == env and inside(model, distractors) and both:
                        mine, others = losses["vagram"], losses[other]
                        less.append([mine[seed] - others[seed] for seed in sorted(both)])
                if less:
                    seeds = min(len(cell) for cell in less)
                    table = np.array([cell[:seeds] for cell in less]).T
                    told.append(f"{LOSSES[other]} {_interval(table, '+,')}")
            if told:
                yield f"- {env}, {name}: {', '.join(told)}."


def _knowledge(runs: dict[tuple[str, ...], list[dict[str, str]]]) -> Iterable[str]:
    yield ""
    yield "In the end: how many dimensions VaGraM's weights amount to, of those there are, and the"
    yield "models' errors on held-out steps (1: no better than the mean change), over all sizes:"
    yield ""
    for env, size in STATES.items():
        for distractors in (0, 10, 20):
            ends: dict[str, list[dict[str, str]]] = {}
            for (where, _, n, loss, _), run in runs.items():
                if (where, n) == (env, str(distractors)):
                    ends.setdefault(loss, []).append(run[-1])
            if "vagram" not in ends:
                continue
            counted = np.mean([float(row["vagram/dimensions"]) for row in ends["vagram"]])
            errors = ", ".join(
                f"{LOSSES[loss]} {np.mean([float(r['model/holdout_mse']) for r in ends[loss]]):.2g}"
                for loss in LOSSES
                if loss in ends
            )
            of = size + distractors
            yield f"- {env}, {distractors} distractors: {counted:.1f} of {of}; {errors}."


def main() -> None:
    table = Table(RESULTS, COLUMNS)
    table_command(__doc__, table, lambda work: planned(), report, metrics=METRICS, marker="vagram")


if __name__ == "__main__":
    main()
