"""Charts of the columns of a run's metrics.csv: what every page's charts have in common."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Log = Mapping[str, Floats]  # column -> (rows,), NaN where blank; always with "step"

BLUE, GREEN, GREY, INK = "#0a66c2", "#1a7f37", "#9a9aa0", "#1d1d1f"
Curve = tuple[str, str, Floats, Floats]  # column, title, steps, values

WIDE = 1000.0  # largest over smallest value from which an axis is logarithmic


def read_log(path: Path) -> dict[str, Floats]:
    """The columns of a metrics.csv."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = rows[0] if rows else ("step",)
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}


def known(log: Log, name: str) -> tuple[Floats, Floats]:
    """Steps and values of a column where it has values; both empty where there is no such one."""
    values = log.get(name, np.full(len(log["step"]), np.nan))
    there = np.isfinite(values)
    return log["step"][there], values[there]


def small_multiples(
    shown: Sequence[Curve],
    end: float,
    *,
    limits: Mapping[str, tuple[float, float]] | None = None,
    dotted: Collection[str] = (),
    logarithmic: Collection[str] = (),
) -> bytes | None:
    """A small chart of each curve, three in a row, as a PNG; None where there are none.

    Args:
        shown: what is drawn. A title of "" leaves the column's name alone.
        end: the last step of the axes.
        limits: of the values, by column.
        dotted: columns with a dot at each value.
        logarithmic: columns with a logarithmic axis.
    """
    from matplotlib.figure import Figure

    if not shown:
        return None
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    chart = Figure(figsize=(9.2, 2.3 * rows), dpi=110, layout="constrained")
    engine: Any = chart.get_layout_engine()
    engine.set(h_pad=0.08)
    grid = chart.subplots(rows, columns, squeeze=False).flat
    for axes, (name, title, steps, values) in zip(grid, shown, strict=False):
        axes.plot(steps, values, "o-" if name in dotted else "-", ms=3, color=BLUE, lw=1.4)
        axes.set_title(title or name, fontsize=9.5, loc="left", color=INK)
        axes.set_xlim(0, end)
        axes.xaxis.set_major_locator(few_ticks())
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.tick_params(labelsize=8)
        if title:
            axes.set_xlabel(name, fontsize=8, color="#6e6e73")
        if name in logarithmic:
            axes.set_yscale("log")
        else:  # a common factor would stand in the title's place
            axes.yaxis.set_major_formatter("{x:.4g}")
        if limits and name in limits:
            axes.set_ylim(*limits[name])
        plain(axes)
    for axes in list(chart.axes)[len(shown) :]:
        axes.remove()
    return png(chart)


def few_ticks() -> Any:
    """At most four steps on an axis, in whole numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4, integer=True)


def plain(axes: Any) -> None:
    """No frame, a faint grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def png(chart: Any) -> bytes:
    """The chart's PNG."""
    buffer = io.BytesIO()
    chart.savefig(buffer, format="png")
    return buffer.getvalue()
