"""Charts of a training run, from the columns of its metrics.csv."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from genpol.reports.charts import (
    BLUE,
    GREY,
    Curve,
    Floats,
    Log,
    known,
    plain,
    png,
    small_multiples,
)

POINTS = 15  # of training success at most; each pools the episodes since the one before
LEAST = 5  # episodes that a point pools at least

# What is drawn of an agent, the first that it has: the column, and what it is in plain words.
DIAGNOSTICS = {
    "critic/q_data": "value of the data's actions",
    "critic/td_loss": "error of the critic (TD loss)",
    "edit/win_rate": "share of targets an edit wins",
    "edit/gain": "best edit minus best base",
    "critic/selection_gain": "best minus mean candidate",
    "actor/q": "value of the actor's actions",
    "actor/entropy": "entropy of the actor (nats)",
    "critic/v": "value of the state",
    "actor/distill_loss": "distance of student from flow",
    "base/loss": "imitation loss",
    "reward/mean": "reward of what is drawn",
    "reward/spread": "spread of the reward within a group",
    "kl/forward": "KL from the policy as it was (nats)",
    "round/tied": "share of layouts with equal rewards",
    "policy/gradient_norm": "gradient norm",
}
PICTURES = 6  # small ones, training success among them

# The same of a world model, and of a critic that is bounded or has diverse heads.
MODEL = {
    "model/holdout_mse": "error of the model, held out",
    "model/value_error_relative": "value error from the model",
    "model/calibration_1": "calibration of the model",
    "imagined/reward": "mean imagined reward",
    "imagined/terminated": "share of terminated branches",
    "vagram/dimensions": "effective state dimensions",
    "lipschitz/sigma_layer1": "largest singular value, layer 1",
    "lipschitz/empirical_max": "steepest slope of the critic",
    "lipschitz/penalty": "adversarial penalty",
    "critic/gradient_cosine": "cosine of head gradients",
}
MODEL_PICTURES = 9


def pooled(log: Log, name: str) -> tuple[Floats, Floats]:
    """Means over the training episodes of several rows, because a row has only a few.

    `name` is a mean over the episodes that ended since the row before, `train/episodes` their
    number so far. Returns the step at the end of each pool and the mean in it, at most POINTS.
    """
    values, there = log.get(name), np.isfinite(log.get("train/episodes", np.array([])))
    if values is None or not there.any():
        return np.empty(0), np.empty(0)
    counts = np.diff(log["train/episodes"][there], prepend=0.0)
    steps, values = log["step"][there], values[there]
    ended = (counts > 0) & np.isfinite(values)
    counts, steps, values = counts[ended], steps[ended], values[ended]
    size = max(LEAST, counts.sum() / POINTS)
    at, means, total, count = [], [], 0.0, 0.0
    for step, value, episodes in zip(steps, values, counts, strict=True):
        total, count = total + value * episodes, count + episodes
        if count >= size:
            at.append(step)
            means.append(total / count)
            total = count = 0.0
    return np.array(at), np.array(means)


def evaluation_chart(log: Log, unit: str = "environment steps") -> bytes:
    """Success of the evaluations with their 95 % interval, or their return where there is none."""
    from matplotlib.figure import Figure

    chart = Figure(figsize=(9.2, 3.6), dpi=110, layout="constrained")
    axes = chart.subplots()
    steps, values = known(log, "eval/success")
    percent = len(steps) > 0
    if not percent:
        steps, values = known(log, "eval/return")
    scale = 100 if percent else 1
    values = scale * values
    axes.hlines(values[0], steps[0], steps[-1], color=GREY, ls="--", lw=1.2)
    axes.plot(steps, values, "o-", ms=4.5, color=BLUE, clip_on=False, zorder=3)
    if percent:
        low, high = (100 * known(log, f"eval/success_{end}")[1] for end in ("low", "high"))
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.13, lw=0)
        axes.set(ylim=(0, 100), yticks=range(0, 101, 20))
    span = max(float(steps[-1] - steps[0]), 1.0)
    axes.set(
        xlabel=unit,
        ylabel="success (%)" if percent else "mean return",
        xlim=(steps[0] - 0.02 * span, steps[-1] + 0.16 * span),  # room for the two levels' names
    )
    _name_levels(axes, float(steps[-1]), float(values[0]), float(values[-1]), percent)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    plain(axes)
    return png(chart)


def _name_levels(axes: Any, end: float, first: float, last: float, percent: bool) -> None:
    """The first and the last level, named at the right, apart from each other."""
    number = "{:.0f} %" if percent else "{:.4g}"
    low, high = axes.get_ylim()
    above = last >= first
    for value, words, colour, up in (
        (first, "before", "#6e6e73", not above),
        (last, "now", BLUE, above),
    ):
        crowded = abs(last - first) < 0.08 * (high - low)
        axes.annotate(
            f"{words} {number.format(value)}",
            (end, value),
            (9, (7 if up else -7) if crowded else 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=10,
            fontweight="bold" if words == "now" else "normal",
        )


def comparison_chart(logs: Mapping[str, Log], unit: str = "environment steps") -> bytes:
    """Returns of the evaluations of two runs, named at the right; the first one stands out."""
    from matplotlib.figure import Figure

    chart = Figure(figsize=(9.2, 3.6), dpi=110, layout="constrained")
    axes = chart.subplots()
    curves = [known(log, "eval/return") for log in logs.values()]
    end = max(float(steps[-1]) for steps, _ in curves)
    axes.set(xlabel=unit, ylabel="mean return", xlim=(-0.02 * end, 1.2 * end))
    colours = (BLUE, "#6e6e73")
    for colour, (steps, values) in zip(colours, curves, strict=True):
        axes.plot(steps, values, "o-", ms=4.5, color=colour, clip_on=False)
    low, high = axes.get_ylim()
    first, second = (float(values[-1]) for _, values in curves)
    apart = 7 if abs(first - second) < 0.08 * (high - low) else 0  # points
    for name, colour, value, up in zip(
        logs, colours, (first, second), (first >= second, first < second), strict=True
    ):
        axes.annotate(
            f"{name} {value:.4g}",
            (end, value),
            (9, apart if up else -apart),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=10,
        )
    axes.xaxis.set_major_formatter("{x:,.0f}")
    plain(axes)
    return png(chart)


def diagnostic_charts(log: Log) -> bytes | None:
    """Small multiples of how learning went; None where there is nothing to draw yet."""
    shown: list[Curve] = []
    for name, title, scale in (
        ("train/success", "success while training (%)", 100),
        ("train/return", "return while training", 1),
    ):
        steps, values = pooled(log, name)
        # A share that is zero throughout is also what an environment without success reports.
        if len(steps) > 1 and (name != "train/success" or _has_success(log)):
            shown.append((name, title, steps, scale * values))
            break
    return _multiples(log, [*shown, *_chosen(log, DIAGNOSTICS, PICTURES - len(shown))])


def model_charts(log: Log) -> bytes | None:
    """The same of a world model and of what bounds the critic."""
    return _multiples(log, _chosen(log, MODEL, MODEL_PICTURES))


def _chosen(log: Log, names: Mapping[str, str], most: int) -> list[Curve]:
    """The first columns that there is something to draw of."""
    shown = []
    for name, title in names.items():
        steps, values = known(log, name)
        if len(steps[steps > 0]) > 1:
            shown.append((name, title, steps[steps > 0], values[steps > 0]))
    return shown[:most]


def _multiples(log: Log, shown: list[Curve]) -> bytes | None:
    limits = {"train/success": (0.0, 100.0), "edit/win_rate": (0.0, 1.0)}
    dotted = [name for name, *_ in shown if name.startswith("train/")]
    return small_multiples(shown, float(log["step"][-1]), limits=limits, dotted=dotted)


def _has_success(log: Log) -> bool:
    return len(known(log, "eval/success")[0]) > 0
