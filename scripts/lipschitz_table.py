"""One model and a bounded critic against an ensemble: docs/results/lipschitz.csv.

SAC learning from imagined transitions alike, with one model, one model and a critic whose
Lipschitz constant is bounded (spectral normalisation, or an adversarial penalty), and seven models.
The claim (arXiv 2302.01244): the bounded critic makes up for the missing six. As published these
critics have no LayerNorm; one model and a critic with it is an arm of its own. The paper's bounds
were chosen here, on seeds from 1000 up: the sweep is docs/results/lipschitz_sweep.csv.

    python -m scripts.lipschitz_table --sweep          # first
    python -m scripts.lipschitz_table                  # several sittings and processes
    python -m scripts.lipschitz_table --report         # the README's tables, from the rows
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from scripts import vagram_table
from scripts.results_table import Table, write_readme
from scripts.training_runs import fill

FOLDER = Path(__file__).parents[1] / "docs" / "results"
SIGMAS = tuple(f"diagnose/sigma_layer{i}" for i in (1, 2, 3))
METRICS = (
    "eval/return", "time/cpu_seconds", "model/holdout_mse", "model/value_error",
    "model/value_error_relative", *SIGMAS,
)  # fmt: skip
KEY = ("env", "arm", "seed")
COLUMNS = (*KEY, "step", *METRICS, "flags")
CHEETAH = "HalfCheetah-v5"
SEEDS = {vagram_table.PENDULUM: 5, vagram_table.HOPPER: 5, CHEETAH: 3}
TUNED: dict[str, dict[str, Any]] = {}  # arm -> what the sweep chose; the table waits for it
ARMS: dict[str, dict[str, Any]] = {
    "single": {"ensemble": 1},
    "single+LayerNorm": {"ensemble": 1, "layer_norm": True},
    "single+spectral": {"ensemble": 1, "lipschitz": "spectral"},
    "single+adversarial": {"ensemble": 1, "lipschitz": "adversarial"},
    "ensemble of 7": {"ensemble": 7},
}
SWEEP: dict[str, tuple[dict[str, Any], ...]] = {
    "single": ({},),
    "single+LayerNorm": ({},),
    "single+spectral": tuple({"lipschitz_bound": c} for c in (1.0, 2.0, 4.0, 8.0)),
    "single+adversarial": tuple(
        {"lipschitz_weight": weight, "lipschitz_radius": radius}
        for weight in (0.01, 0.1, 1.0)
        for radius in (0.03, 0.1)
    ),
}
SWEEP_SEEDS = (1000, 1001)


def options_of(env: str, arm: str, over: dict[str, Any]) -> dict[str, Any]:
    """Of `genpol train`."""
    like = env if env in vagram_table.OF_ENV else vagram_table.HOPPER
    options = vagram_table.options_of(like, "4x200", 0, "mle")
    return options | {"env": env} | ARMS[arm] | TUNED.get(arm, {}) | over


def planned() -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    """Every run of the table, whole comparisons early."""
    for seed in range(max(SEEDS.values())):
        for env, count in SEEDS.items():
            for arm in ARMS:
                if seed < count:
                    yield {"env": env, "arm": arm, "seed": seed}, options_of(env, arm, {})


def sweep() -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    """Every run of the sweep, on the smallest task."""
    env = vagram_table.PENDULUM
    for seed in SWEEP_SEEDS:
        for arm, values in SWEEP.items():
            for over in values:
                named = " ".join(
                    [arm, *(f"{k.removeprefix('lipschitz_')}={v}" for k, v in over.items())]
                )
                yield {"env": env, "arm": named, "seed": seed}, options_of(env, arm, over)


def report(rows: list[dict[str, str]], what: str) -> str:
    """Markdown: return over the second half, cost, largest singular value, error of the value."""
    from genpol.stats import iqm_interval

    lines = [
        f"| environment | {what} | return | CPU-s per 1,000 steps | largest sigma | value error | "
        "seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for env, arm in dict.fromkeys((r["env"], r["arm"]) for r in rows):
        found = [r for r in rows if (r["env"], r["arm"]) == (env, arm)]
        returns, costs, sigmas, errors = [], [], [], []
        for seed in sorted({r["seed"] for r in found}):
            run = sorted((r for r in found if r["seed"] == seed), key=lambda r: int(r["step"]))
            end = int(run[-1]["step"])
            late = [r for r in run if int(r["step"]) > end / 2]
            returns.append(float(np.mean([float(r["eval/return"]) for r in late])))
            seconds = float(run[-1]["time/cpu_seconds"]) - float(run[0]["time/cpu_seconds"])
            costs.append(1000 * seconds / end)
            sigmas.append(max(float(run[-1][name]) for name in SIGMAS))
            errors.append(float(np.mean([float(r["model/value_error_relative"]) for r in late])))
        middle, low, high = iqm_interval(returns, np.random.default_rng(0))
        sigma = np.nanmax(sigmas) if np.isfinite(sigmas).any() else np.nan
        shown = "" if np.isnan(sigma) else f"{sigma:.3g}"
        lines.append(
            f"| {env} | {arm} | {middle:,.0f} ({low:,.0f}-{high:,.0f}) | {np.mean(costs):.0f} | "
            f"{shown} | {np.nanmean(errors):.2g} | {len(returns)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--envs", nargs="+", default=list(SEEDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[*range(5), *SWEEP_SEEDS])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/lipschitz_table"))
    parser.add_argument("--report", action="store_true", help="write the README's tables")
    options = parser.parse_args()
    table = Table(FOLDER / "lipschitz.csv", COLUMNS)
    swept = Table(FOLDER / "lipschitz_sweep.csv", COLUMNS)
    if options.report:
        write_readme("lipschitz", report(table.rows(), "critic and models"))
        write_readme("lipschitz-sweep", report(swept.rows(), "setting"))
        return
    if not options.sweep and not TUNED:
        raise SystemExit("run --sweep first, and put what it chose for each arm into TUNED")
    plan = sweep() if options.sweep else planned()
    chosen = [
        (key, flags)
        for key, flags in plan
        if key["env"] in options.envs and key["seed"] in options.seeds
    ]
    fill(swept if options.sweep else table, chosen, options.work, METRICS, options.threads)


if __name__ == "__main__":
    main()
