"""Over-optimisation: a weak training checker alone, three together, and KL targets; gold judges.

    python -m scripts.over_optimisation             # runs what is missing: 12 runs, then the report
    python -m scripts.over_optimisation --report    # only the table and the picture
    python -m scripts.over_optimisation --seeds 1000 --arms alone     # tuning seeds: 1000 and more

docs/results/over_optimisation.csv         one row for each evaluation of a finished run, seeds 0-2
docs/results/over_optimisation_tuning.csv  the same for tuning seeds; no figure uses them
docs/results/over_optimisation.png         gold and the training reward over epochs, gold over KL

Every arm is grpo on `tiny`, at twice the recommended learning rate so that a checker is exhausted
within the budget, for 40 epochs of 64 images (2,560 in all):

    alone      reward weak0, no KL term: the control
    ensemble   reward worst of weak0, weak1, weak2, no KL term
    target 2   reward weak0, and the KL from the reference held at 2 nats per image of kl/forward
    target 6   the same at 6 nats

The weak checkers are those of `scripts/weak_checkers.py`. Evaluations are every 4 epochs on 128
held-out prompts with the same noise. Every arm's curve of the training reward shows `weak0`, the
ensemble's too, so that the curves can be compared. The budget, stated before the first run of a
test seed: 40 epochs for every arm, about 5 minutes of one idle core each, an hour in all. Several
processes may run the script at once; each takes runs that no other is at.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.results_table import Table, write_block
from scripts.training_runs import claimed

RESULTS = Path(__file__).parents[1] / "docs" / "results"
EPOCHS, SEEDS, FIRST_TUNING_SEED = 40, (0, 1, 2), 1000
T_95 = 4.303  # two-sided 95 % quantile of Student's t with 2 degrees of freedom: 3 seeds
WEAK, WORST = "scripts.weak_checkers:weak0", "scripts.weak_checkers:worst_of_three"
COMMON: dict[str, Any] = {
    "model": "tiny",
    "algorithm": "grpo",
    "learning_rate": 2e-3,
    "gold_reward": f"gold,gold_wholly,{WEAK}",
    "epochs": EPOCHS,
    "eval_images": 128,
    "eval_every": 4,
    "checkpoint_every": 4,
    "keep_checkpoints": 1,
    "wandb": "disabled",
}
ARMS: dict[str, dict[str, Any]] = {
    "alone": {"reward": WEAK},
    "ensemble": {"reward": WORST},
    "target 2": {"reward": WEAK, "kl_weight": 0.1, "kl_target": 2.0},
    "target 6": {"reward": WEAK, "kl_weight": 0.1, "kl_target": 6.0},
}
LABELS = {
    "alone": "one weak checker",
    "ensemble": "worst of three weak checkers",
    "target 2": "one weak checker, KL target 2 nats",
    "target 6": "one weak checker, KL target 6 nats",
}
MEASURED = {
    "gold": "eval/gold",
    "gold_wholly": "eval/gold_wholly",
    "weak0": f"eval/{WEAK}",
    "kl_forward": "eval/kl_forward",
    "diversity": "eval/diversity",
}
COLUMNS = ("arm", "seed", "epoch", "images", *MEASURED, "kl_weight")


def table_of(seed: int) -> Table:
    name = "over_optimisation_tuning" if seed >= FIRST_TUNING_SEED else "over_optimisation"
    return Table(RESULTS / f"{name}.csv", COLUMNS)


def finish(arm: str, seed: int, folder: Path, epochs: int) -> None:
    """Run an arm with a seed, or go on with what is there; then write its rows."""
    from genpol.commands.finetune.command import complete, train
    from genpol.commands.finetune.options import RESUMABLE, Finetune
    from genpol.runs.resuming import restored

    config = Finetune(**COMMON | ARMS[arm] | {"epochs": epochs}, seed=seed, output=folder)
    stored: dict[str, Any] = {}
    if (folder / "config.json").is_file():
        config, stored = restored(
            Finetune(resume=folder, epochs=epochs, wandb="disabled"), "finetune", RESUMABLE
        )
    train(complete(replace(config, epochs=epochs)), stored)
    with (folder / "metrics.csv").open(newline="") as file:
        logged = list(csv.DictReader(file))
    rows = []
    for row in logged:
        if row["eval/gold"]:
            values = {name: float(row[column]) for name, column in MEASURED.items()}
            known = {"arm": arm, "seed": seed, "epoch": int(row["step"])}
            images = int(float(row["train/images"] or 0))
            weight = float(row["kl/beta"]) if row.get("kl/beta") else ""
            rows.append(known | {"images": images} | values | {"kl_weight": weight})
    table_of(seed).add(*rows)


def curves(rows: Sequence[dict[str, str]], arm: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs (E,), and values (seeds, E)."""
    mine = [r for r in rows if r["arm"] == arm]
    epochs = sorted({int(r["epoch"]) for r in mine})
    known = {(r["seed"], int(r["epoch"])): float(r[name]) for r in mine}
    seeds = sorted({r["seed"] for r in mine})
    return np.array(epochs), np.array([[known[seed, e] for e in epochs] for seed in seeds])


def interval(values: np.ndarray, scale: float = 1.0, digits: int = 1) -> str:
    """Mean and half-width of the 95 % interval over three seeds."""
    half = T_95 * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{scale * values.mean():.{digits}f} ± {scale * half:.{digits}f}"


def block(rows: Sequence[dict[str, str]]) -> str:
    """The text of docs/RESULTS.md."""
    lines = [
        "A weak training checker (400 pictures, a fifth of their labels wrong), alone and with "
        f"guards: grpo on `tiny`, {EPOCHS} epochs of 64 images, 128 held-out prompts, the gold "
        "checker (`python -m scripts.over_optimisation`; mean of 3 seeds, ± half-width of the 95 % "
        "interval over seeds). The peak is the epoch at which the mean over seeds is highest, and "
        "gold chooses it. The fall is paired by seed.",
        "",
        "| arm | gold before, % | gold at the peak, % (epoch) | gold at the end, % | fall from the "
        "peak, points | weak checker at the end, % | KL at the end, nats | diversity at the end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, label in LABELS.items():
        epochs, gold = curves(rows, arm, "gold")
        weak, kl, alike = (curves(rows, arm, n)[1] for n in ("weak0", "kl_forward", "diversity"))
        peak = int(gold.mean(0).argmax())
        columns = [
            interval(gold[:, 0], 100),
            f"{interval(gold[:, peak], 100)} ({epochs[peak]})",
            interval(gold[:, -1], 100),
            interval(gold[:, peak] - gold[:, -1], 100),
            interval(weak[:, -1], 100),
            interval(kl[:, -1]),
            interval(alike[:, -1], digits=3),
        ]
        lines.append(f"| {label} | {' | '.join(columns)} |")
    return "\n".join([*lines, "", "![gold over training](results/over_optimisation.png)"])


def picture(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Gold over epochs, the weak checker over epochs, gold over KL; thin lines are seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    panels = (("epoch", "gold"), ("epoch", "weak0"), ("kl_forward", "gold"))
    for axis, (across, up) in zip(axes, panels, strict=True):
        for i, (arm, label) in enumerate(LABELS.items()):
            epochs, values = curves(rows, arm, up)
            if not len(epochs):
                continue
            at = curves(rows, arm, across)[1] if across != "epoch" else np.tile(epochs, (3, 1))
            for x, y in zip(at, values, strict=False):
                axis.plot(x, 100 * y, color=f"C{i}", linewidth=0.7, alpha=0.45)
            mean = at[: len(values)].mean(0)
            axis.plot(mean, 100 * values.mean(0), color=f"C{i}", linewidth=2, label=label)
        axis.set_xlabel("epochs" if across == "epoch" else "KL from the reference, nats per image")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("attributes right by the gold checker, %")
    axes[1].set_ylabel("weak checker's score, %")
    axes[2].set_ylabel("attributes right by the gold checker, %")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def report() -> None:
    """Rewrite the place in docs/RESULTS.md and the picture; exits while runs are missing."""
    rows = table_of(0).rows()
    for arm in ARMS:
        done = {r["seed"] for r in rows if r["arm"] == arm}
        if missing := {str(seed) for seed in SEEDS} - done:
            raise SystemExit(
                f"seeds {sorted(missing)} of {arm!r} are missing; run without --report"
            )
    picture(rows, RESULTS / "over_optimisation.png")
    write_block("over-optimisation", block(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[*SEEDS])
    parser.add_argument("--arms", nargs="*", choices=[*ARMS], default=[*ARMS])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="others for tuning seeds only")
    parser.add_argument("--runs", type=Path, default=Path("runs/over_optimisation"))
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.epochs != EPOCHS and min(args.seeds) < FIRST_TUNING_SEED:
        raise SystemExit(f"test seeds have {EPOCHS} epochs; others are for seeds of 1000 and more")
    for seed in [] if args.report else args.seeds:
        for arm in args.arms:
            folder = args.runs / f"{arm.replace(' ', '-')}-seed{seed}"
            with claimed(folder) as free:
                if free and not table_of(seed).has(arm=arm, seed=seed):
                    finish(arm, seed, folder, args.epochs)
    rows = table_of(0).rows()
    every = all(
        any(r["arm"] == a and r["seed"] == str(s) for r in rows) for a in ARMS for s in SEEDS
    )
    if args.report or every:
        report()


if __name__ == "__main__":
    main()
