"""The page of a steering evaluation: verdict, success, pairs, latency, value, films."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genpol.reports.page import Panel, figure, page, paragraph, table
from genpol.reports.stats import mcnemar, wilson
from genpol.steering.result import TITLES, SteerResult
from offline.files import write_beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, INK = "#0a66c2", "#1d1d1f"
COLOURS = {"base": "#9a9aa0", "steered": BLUE, "mode": "#8a3ffc"}
OTHER_COLOUR = "#c9c9ce"
LARGEST_FILM = 8_000_000  # bytes; larger ones are linked rather than put inside the page
BIN = 8  # episodes that a point of the calibration chart needs at least


def write_report(result: SteerResult, folder: Path) -> Path:
    """Write `folder`/index.html, with the films named in `result.videos` inside it."""
    path = folder / "index.html"
    title = f"Steering {result.title}".rstrip()
    write_beside(path, page(panels(result, folder), title).encode())
    return path


def panels(result: SteerResult, folder: Path) -> list[Panel]:
    """All panels; films are read from `folder`."""
    found = [
        Panel("Recommendation", verdict(result)),
        Panel("Success of every arm", success(result)),
        Panel("Paired outcomes", pairs(result)),
    ]
    if result.latency:
        found.append(Panel("Time per decision", latency(result)))
    if (shown := calibration(result)) is not None:
        found.append(Panel("Success against the value of the first action chunk", shown))
    if result.videos:
        found.append(Panel("Films", films(result, folder)))
    return found


def verdict(result: SteerResult) -> str:
    """The recommendation and what it rests on."""
    advice = result.advice()
    kind = "good" if advice.startswith("steer") else "part"
    lines = [
        f'<p class="{kind}"><b>{escape(advice[0].upper() + advice[1:])}.</b></p>',
        paragraph(
            f"Each arm ran {result.episodes} episodes from the same initial states. The base "
            "policy's weights are the same in all arms, except in the clone of successes. With "
            "steering the policy proposes several action chunks, and one that the value function "
            "ranks high is executed."
        ),
    ]
    if result.diversity:
        lines.append(paragraph(f"Note: {result.diversity}."))
    spread, fell = result.arms["steered"].spread, result.arms["steered"].fell_back
    if np.isfinite(spread):
        words = f"The proposals of a decision vary by {spread:.2f} standard deviations of the data"
        if fell > 0:
            words += f". The gate chose the base policy's own sample in {fell:.1%} of the decisions"
        lines.append(paragraph(words + ".", "note"))
    if result.settings:
        shown = ", ".join(f"{name} {value}" for name, value in result.settings.items())
        lines.append(paragraph(f"Settings: {shown}.", "note"))
    return "\n".join(lines)


def success(result: SteerResult) -> str:
    """Bars with Wilson intervals, and the same as a table."""
    names, rates, ends, rows = list(result.arms), [], [], []
    for name in names:
        arm = result.arms[name]
        low, high = wilson(int(arm.success.sum()), result.episodes)
        rates.append(result.rate(name))
        ends.append((low, high))
        steps = arm.lengths[arm.success.astype(bool)]
        rows.append(
            [
                TITLES.get(name, name) + (f" ({arm.note})" if arm.note else ""),
                f"{100 * rates[-1]:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
                f"{steps.mean():.0f}" if len(steps) else "",
                f"{arm.returns.mean():.1f}",
            ]
        )
    chart, axes = _chart()
    places = np.arange(len(names))
    axes.bar(
        places, [100 * r for r in rates], 0.62, color=[COLOURS.get(n, OTHER_COLOUR) for n in names]
    )
    axes.errorbar(
        places,
        [100 * r for r in rates],
        _whiskers(rates, ends),
        fmt="none",
        ecolor=INK,
        capsize=4,
        lw=1,
    )
    for place, rate, (_, high) in zip(places, rates, ends, strict=True):
        axes.text(place, 100 * high + 2, f"{100 * rate:.0f} %", ha="center", fontsize=10)
    axes.set(ylabel="success (%)", ylim=(0, 112), yticks=range(0, 101, 20))
    axes.set_xticks(places, [TITLES.get(name, name) for name in names])
    caption = "Share of episodes that succeed, with 95 % Wilson intervals."
    head = ["arm", "success, % (95 %)", "steps of a success", "mean return"]
    return figure(_png(chart), caption) + table(head, rows)


def pairs(result: SteerResult) -> str:
    """Outcomes of pairs of episodes from the same initial state, with the exact test."""
    rows = []
    base = result.arms["base"].success
    for name, arm in result.arms.items():
        if name == "base":
            continue
        found = result.outcomes(name)
        rows.append(
            [
                f"{TITLES.get(name, name)} against base",
                *(str(found[key]) for key in ("both", "only_base", "only_other", "neither")),
                f"{mcnemar(base, arm.success):.2g}",
            ]
        )
    numbers = result.summary()
    words = (
        f"Steering changes success by {100 * numbers['steer/difference']:+.1f} points "
        f"(95 % interval {100 * numbers['steer/difference_low']:+.1f} to "
        f"{100 * numbers['steer/difference_high']:+.1f}, bootstrap over pairs). p is the exact "
        "two-sided McNemar test on the episodes in which exactly one of the two succeeds."
    )
    head = ["", "both", "only base", "only the other", "neither", "p"]
    return table(head, rows) + paragraph(words, "note")


def latency(result: SteerResult) -> str:
    """Median and 95th percentile of single decisions."""
    rows = [
        [TITLES.get(name, name)]
        + [f"{1e3 * np.percentile(np.asarray(seconds), q):.2f}" for q in (50, 95)]
        for name, seconds in result.latency.items()
    ]
    ratio = result.summary()["steer/latency_ratio"]
    words = (
        "Measured for one robot, base and steered in turn, on this machine. A steered decision "
        f"takes {ratio:.2f} times as long as one base sample (medians)."
    )
    return table(["decision", "p50, ms", "p95, ms"], rows) + paragraph(words)


def calibration(result: SteerResult) -> str | None:
    """Success against the value of the first chosen chunk; None where nothing can be said."""
    arm = result.arms["steered"]
    if arm.scores is None:
        return None
    known = np.isfinite(arm.scores)
    scores, won = np.asarray(arm.scores)[known], np.asarray(arm.success)[known].astype(bool)
    if len(scores) < 2 * BIN or np.ptp(scores) == 0:
        return None
    parts = np.array_split(np.argsort(scores, kind="stable"), min(5, len(scores) // BIN))
    at = [float(scores[part].mean()) for part in parts]
    rates = [float(won[part].mean()) for part in parts]
    ends = [wilson(int(won[part].sum()), len(part)) for part in parts]
    chart, axes = _chart()
    axes.errorbar(
        at, [100 * r for r in rates], _whiskers(rates, ends), fmt="o-", color=BLUE, capsize=4
    )
    axes.set(xlabel="value of the first chunk executed", ylabel="success (%)", ylim=(-3, 103))
    return figure(
        _png(chart),
        f"Steered episodes in {len(parts)} groups by the value of their first chunk, with 95 % "
        "Wilson intervals.",
    ) + paragraph(_ranking(scores, won))


def _ranking(scores: np.ndarray, won: np.ndarray) -> str:
    area = auc(scores, won)
    if area is None:
        return "All episodes had the same outcome, so the ranking cannot be judged."
    return (
        f"A success has a higher value than a failure in {area:.0%} of all such pairs. 50 % would "
        "mean that the value of the initial state predicts nothing."
    )


def auc(scores: np.ndarray, won: np.ndarray) -> float | None:
    """P(score of a success > score of a failure), ties as a half; None without both kinds."""
    good, bad = scores[won], scores[~won]
    if not len(good) or not len(bad):
        return None
    above = (good[:, None] > bad).mean() + 0.5 * (good[:, None] == bad).mean()
    return float(above)


def films(result: SteerResult, folder: Path) -> str:
    """The films, inside the page."""
    words = (
        "Left: without steering. Right: with steering, from the same initial state. Under the "
        "frames: values of all candidates at each decision (grey) and of the executed one (blue). "
        "In the corner: where each candidate would move the hand (rejected ones grey)."
    )
    return paragraph(words) + "\n".join(
        film(folder / path, path, caption) for caption, path in result.videos
    )


def film(path: Path, address: str, caption: str) -> str:
    """One film as HTML: inside the page, or a link to it if it is very large."""
    if not path.is_file():
        return paragraph(f"{caption}: the film {address} is missing.", "note")
    text = escape(caption)
    if path.stat().st_size > LARGEST_FILM:
        return f'<p><a href="{escape(address)}">{text}</a></p>'
    data = base64.b64encode(path.read_bytes()).decode()
    if path.suffix == ".gif":
        shown = f'<img class="chart" src="data:image/gif;base64,{data}" alt="{text}">'
    else:
        shown = (
            f'<video class="chart" style="width: 100%" controls muted loop playsinline '
            f'preload="auto" src="data:video/mp4;base64,{data}"></video>'
        )
    return f"<figure>{shown}<figcaption>{text}</figcaption></figure>"


def _whiskers(rates: Sequence[float], ends: Sequence[tuple[float, float]]) -> np.ndarray:
    """(2, n) lengths below and above each rate, in per cent."""
    low, high = np.array(ends).T
    return 100 * np.clip([rates - low, high - rates], 0, None)


def _chart() -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    chart = Figure(figsize=(9.2, 3.4), dpi=110, layout="constrained")
    axes = chart.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, axis="y")
    axes.set_axisbelow(True)
    return chart, axes


def _png(chart: Figure) -> bytes:
    buffer = io.BytesIO()
    chart.savefig(buffer, format="png")
    return buffer.getvalue()
