"""Charts of a fine-tuning run: rewards and KL, and a small one of every other metric there is."""

from __future__ import annotations

import itertools

import numpy as np

from genpol.finetuning.record import RunRecord
from genpol.reports.charts import (
    BLUE,
    GREEN,
    GREY,
    WIDE,
    Curve,
    few_ticks,
    known,
    plain,
    png,
    small_multiples,
)

PURPLE = "#8a3ffc"
OTHERS = (GREEN, "#b35900", "#a2185b", "#00707a")  # of gold rewards
DRAWN = ("reward/mean", "reward/p10", "reward/p50", "reward/p90", "kl/nats")  # in the large chart
LEFT_OUT = ("time/", "memory/", "train/images")  # say nothing of learning
FIRST = ("eval/", "kl/", "diversity/", "reward/")  # families that come first, CHECKS last
CHECKS = ("check/", "train/")
MOST = 24  # small charts

TITLES = {  # in plain words, where a name alone is hard to read
    "train/gradient_norm": "gradient norm before clipping",
    "check/ratio_error": "error of the ratio before an update",
    "reward/std": "spread of the training rewards",
    "kl/per_dim": "KL per dimension and step (nats)",
    "kl/forward": "KL from the start (nats)",
}


def reward_chart(run: RunRecord) -> bytes | None:
    """Rewards of training and of held-out prompts, and the KL; None before the first epoch."""
    from matplotlib.figure import Figure

    steps, seen = known(run.log, "reward/mean")
    at, held_out = run.evaluations("reward")
    if not len(steps) and len(at) < 2:
        return None
    golds = [name for name in _gold(run) if len(run.evaluations(name)[0]) > 1]
    kl_steps, kl = known(run.log, "kl/nats")
    widths = [2.0, *([1.4] if golds else []), *([1.2] if len(kl) > 1 else [])]
    chart = Figure(figsize=(9.2, 3.5), dpi=110, layout="constrained")
    axes = chart.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    low, high = (known(run.log, f"reward/{end}") for end in ("p10", "p90"))
    if len(low[0]) and len(low[0]) == len(high[0]):
        span = "10th to 90th percentile"
        axes[0].fill_between(low[0], low[1], high[1], color=GREY, alpha=0.2, lw=0, label=span)
    axes[0].plot(steps, seen, color=GREY, lw=1.3, label="training prompts, mean")
    axes[0].plot(at, held_out, "o-", ms=3.5, color=BLUE, label="held-out prompts, mean")
    axes[0].set_title("reward", fontsize=10, loc="left")
    axes[0].legend(frameon=False, fontsize=8)
    if golds:
        for name, colour in zip(golds, itertools.cycle(OTHERS), strict=False):
            axes[1].plot(*run.evaluations(name), "o-", ms=3.5, color=colour, label=name)
        axes[1].set_title("not trained on, held-out prompts", fontsize=10, loc="left")
        axes[1].legend(frameon=False, fontsize=8)
    if len(kl) > 1:
        axes[-1].plot(kl_steps, kl, color=PURPLE, lw=1.4)
        axes[-1].set_title("KL from the start (nats)", fontsize=10, loc="left")
        axes[-1].set_ylim(bottom=0)
    for one in axes:
        one.set_xlabel("epoch", fontsize=9)
        one.tick_params(labelsize=8.5)
        one.xaxis.set_major_locator(few_ticks())
        plain(one)
    return png(chart)


def metric_charts(run: RunRecord) -> tuple[bytes | None, str]:
    """A small chart of every other metric of metrics.csv that changes, and words about the rest."""
    shown, constant = list[Curve](), list[str]()
    drawn = {*DRAWN, "eval/reward", *(f"eval/{name}" for name in _gold(run)), "step"}
    names = [n for n in run.log if n not in drawn and not n.startswith(LEFT_OUT)]
    for name in sorted(names, key=_order):
        if name.startswith("eval/"):
            steps, values = run.evaluations(name.removeprefix("eval/"))
        else:
            steps, values = known(run.log, name)
        if len(values) > 1 and np.ptp(values) > 0:
            shown.append((name, TITLES.get(name, ""), steps, values))
        elif len(values) > 1:
            constant.append(f"{name} = {values[0]:.4g}")
    words = []
    if constant:
        words.append(f"Constant: {', '.join(constant)}.")
    if len(shown) > MOST:
        words.append(f"{len(shown) - MOST} more are in metrics.csv.")
    few = shown[:MOST]
    steep = [n for n, _, _, v in few if v.min() > 0 and v.max() / v.min() > WIDE]
    dotted = [n for n, _, _, v in few if n.startswith("eval/") or len(v) < 12]
    chart = small_multiples(few, max(float(run.epochs), 1.0), dotted=dotted, logarithmic=steep)
    return chart, " ".join(words)


def _gold(run: RunRecord) -> list[str]:
    """Names of the rewards that are only evaluated."""
    for scores in (run.after, run.before):
        if scores is not None:
            return [name for name in scores.scores if name != "reward"]
    return []


def _order(name: str) -> tuple[int, str]:
    for place, family in enumerate(FIRST):
        if name.startswith(family):
            return place, name
    return (99 if name.startswith(CHECKS) else 50), name
