"""Write the tables and charts of steered pictures from the committed rows; say what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from scripts.image_steering_tables import (
    BEST_OF,
    GUIDED,
    MODELS,
    RESULTS,
    SEEDS,
    WEIGHTS,
    arms_of,
    best_name,
    tables,
)
from scripts.results_table import write_block

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided, n - 1 degrees of freedom
KINDS = {
    "best of K by the reward": "C0",
    "pruned by the value": "C2",
    "pruned by the predicted reward": "C4",
    "resampled by the value": "C1",
    "guidance": "C3",
}
Rows = Sequence[dict[str, str]]


def write() -> None:
    """Both blocks of docs/RESULTS.md."""
    steered, composed = (table.rows() for table in tables(0))
    parts = [text for model in MODELS if (text := model_text(model, steered))]
    if any(row["model"] for row in steered):
        picture(steered, RESULTS / "image_steering.png")
        parts.append("![gold against network evaluations](results/image_steering.png)")
    write_block("image-steering", "\n\n".join([*parts, missing_images(steered)]).strip())
    text = frontier_text(composed)
    if composed:
        frontier(composed, RESULTS / "image_composition.png")
        text += "\n\n![frontiers of two rewards](results/image_composition.png)"
    write_block("image-composition", f"{text}\n\n{missing_composed(composed)}".strip())


def names_of(model: str) -> list[str]:
    """Arms in the order of the table."""
    return [*(best_name(k) for k in BEST_OF), *arms_of(model), *GUIDED]


def numbers(rows: Rows, column: str) -> np.ndarray:
    return np.array([float(row[column]) for row in rows])


def interval(values: np.ndarray, scale: float = 1.0, digits: int = 1) -> str:
    """Mean and half-width of the 95 % interval over seeds."""
    mean = scale * float(values.mean())
    if len(values) not in T_95:
        return f"{mean:.{digits}f}"
    half = scale * T_95[len(values)] * float(values.std(ddof=1)) / math.sqrt(len(values))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def model_text(model: str, rows: Rows) -> str:
    """One model's table, and whether the target was reached."""
    mine = [row for row in rows if row["model"] == model]
    if not mine:
        return ""
    head = [f"`{model}`", "evaluations", "reward calls", "CPU-seconds", "reward", "gold, %",
            "over one sample, points", "over the best of 8, points"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in names_of(model):
        own = [row for row in mine if row["arm"] == name]
        if not own:
            continue
        cells = [
            name,
            f"{numbers(own, 'evaluations').mean():g}",
            own[0]["reward_calls"],
            f"{numbers(own, 'cpu_seconds').mean():.2g}",
            interval(numbers(own, "reward"), digits=3),
            interval(numbers(own, "gold"), 100),
            interval(numbers(own, "gold_gain"), 100),
            interval(numbers(own, "over_best_of_8"), 100),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", verdict(model, mine)])


def verdict(model: str, rows: Rows) -> str:
    """Which pruned arms reach the best of 8 at half its evaluations or less."""
    whole = [row for row in rows if row["arm"] == best_name(8)]
    if not whole:
        return ""
    half = numbers(whole, "evaluations").mean() / 2
    lines = []
    for kind in ("pruned by the value", "pruned by the predicted reward"):
        cheap = {}
        for name in names_of(model):
            own = [row for row in rows if row["arm"] == name]
            if kind_of(name) == kind and own and numbers(own, "evaluations").mean() <= half:
                cheap[name] = numbers(own, "over_best_of_8")
        if not cheap:
            continue
        name = max(cheap, key=lambda arm: float(cheap[arm].mean()))
        mean = 100 * float(cheap[name].mean())
        how = "reaches" if mean >= 0 else f"stays {-mean:.1f} points below"
        lines.append(
            f"`{model}`, {kind}: at half the evaluations of the best of 8 ({half:g}) the best arm "
            f"is `{name}`. It {how} the gold score of the best of 8 (difference "
            f"{interval(cheap[name], 100)} points)."
        )
    return "\n".join(lines)


def picture(rows: Rows, path: Path) -> None:
    """Gold against evaluations of one picture, a panel for each model."""
    shown = [model for model in MODELS if any(row["model"] == model for row in rows)]
    figure, axes = plt.subplots(1, len(shown), figsize=(5.6 * len(shown), 4), squeeze=False,
                                layout="constrained")  # fmt: skip
    for axis, model in zip(axes[0], shown, strict=True):
        mine = [row for row in rows if row["model"] == model]
        for kind, colour in KINDS.items():
            names = [name for name in names_of(model) if kind_of(name) == kind]
            points = []
            for name in names:
                own = [row for row in mine if row["arm"] == name]
                if own:
                    gold = 100 * numbers(own, "gold")
                    points.append((numbers(own, "evaluations").mean(), gold.mean(), gold))
            points.sort(key=lambda point: point[0])
            style = "o-" if kind.startswith("best") else "o"
            axis.plot([p[0] for p in points], [p[1] for p in points], style, color=colour,
                      label=kind)  # fmt: skip
            for at, _, gold in points:
                axis.plot([at] * len(gold), gold, ".", ms=3, color=colour, alpha=0.5)
        axis.set_title(model, loc="left")
        axis.set_xlabel("network evaluations of one picture")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("attributes right by the gold checker, %")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def kind_of(arm: str) -> str | None:
    """The curve that an arm belongs to; None for controls that are in the table alone."""
    if arm in map(best_name, BEST_OF):
        return "best of K by the reward"
    if arm.endswith("predicted reward"):
        return "pruned by the predicted reward"
    value = " by the value"
    starts = {"prune": f"pruned{value}", "resample": f"resampled{value}", "guidance": "guidance"}
    return next((kind for start, kind in starts.items() if arm.startswith(start)), None)


def frontier_text(rows: Rows) -> str:
    """Both rewards at every weight, steered and fine-tuned."""
    if not rows:
        return ""
    head = ["weight of the size", "steered: gold, %", "kB", "fine-tuned: gold, %", "kB"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for weight in (f"{w:g}" for w in WEIGHTS):
        cells = [weight]
        for arm in ("steered", "fine-tuned"):
            own = [row for row in rows if (row["arm"], row["weight"]) == (arm, weight)]
            cells.append(interval(numbers(own, "gold"), 100) if own else "not run")
            size = interval(-numbers(own, "jpeg_compressibility"), digits=3) if own else "not run"
            cells.append(size)
        lines.append(f"| {' | '.join(cells)} |")
    plain = [row for row in rows if row["arm"] == "one sample"]
    if plain:
        gold = interval(numbers(plain, "gold"), 100)
        size = interval(-numbers(plain, "jpeg_compressibility"), digits=3)
        lines += ["", f"One sample of the pipeline has a gold score of {gold} % and {size} kB."]
    lines.append(exchange(rows))
    return "\n".join(lines)


def exchange(rows: Rows) -> str:
    """What each side of the comparison has spent."""
    spent = []
    for arm in ("steered", "fine-tuned"):
        own = [row for row in rows if row["arm"] == arm]
        if own:
            images = {row["trained_on"] for row in own}
            each = "for all weights together" if arm == "steered" else "for each weight"
            spent.append(
                f"{arm}: {', '.join(sorted(images))} images learnt from {each}, "
                f"{numbers(own, 'evaluations').mean():g} evaluations a picture"
            )
    return "\n" + "; ".join(spent) + "."


def frontier(rows: Rows, path: Path) -> None:
    """Gold against size, a point for each weight; thin points are seeds."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for arm, colour in (("steered", "C2"), ("fine-tuned", "C0"), ("one sample", "0.5")):
        means = []
        for weight in (f"{w:g}" for w in WEIGHTS):
            own = [row for row in rows if (row["arm"], row["weight"]) == (arm, weight)]
            if own:
                size, gold = -numbers(own, "jpeg_compressibility"), 100 * numbers(own, "gold")
                axis.plot(size, gold, ".", ms=3, color=colour, alpha=0.5)
                means.append((size.mean(), gold.mean()))
        axis.plot(*zip(*means, strict=True), "o-", color=colour, label=arm) if means else None
    axis.set_xlabel("size as JPEG, kB")
    axis.set_ylabel("attributes right by the gold checker, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def missing_images(rows: Rows) -> str:
    """A line about runs without rows; "" where all are there."""
    there = {(row["model"], row["arm"], row["seed"]) for row in rows}
    wanted = [(m, a, str(s)) for m in MODELS for a in names_of(m) for s in SEEDS]
    return _missing([key for key in wanted if key not in there], len(wanted), "images")


def missing_composed(rows: Rows) -> str:
    there = {(row["arm"], row["weight"], row["seed"]) for row in rows}
    wanted = [
        (arm, f"{w:g}", str(s)) for arm in ("steered", "fine-tuned") for w in WEIGHTS for s in SEEDS
    ]
    return _missing([key for key in wanted if key not in there], len(wanted), "composition")


def _missing(keys: Sequence[tuple[str, ...]], wanted: int, table: str) -> str:
    if not keys:
        return ""
    few = "; ".join(", ".join(key) for key in keys[:3])
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return (
        f"Not run yet: {len(keys)} of {wanted} rows ({few}{more}). "
        f"`python -m scripts.image_steering_tables {table}` runs them."
    )
