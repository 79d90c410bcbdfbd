"""Means of scores as text, with intervals: the same numbers every time a page is written."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from genpol.reports.stats import bootstrap, paired_difference

Floats = NDArray[np.float64]
RESAMPLES = 4000


def difference(old: Floats, new: Floats) -> tuple[float, float, float]:
    """Mean gain with its paired 95 % bootstrap interval."""
    return paired_difference(old, new, np.random.default_rng(0), resamples=RESAMPLES)


def with_interval(values: Floats, digits: int) -> str:
    """Mean and 95 % bootstrap interval."""
    low, high = bootstrap(
        values, lambda rows: rows.mean(-1), np.random.default_rng(0), resamples=RESAMPLES
    )
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def gained(old: Floats, new: Floats, digits: int) -> str:
    """Mean gain and its paired interval, with signs."""
    mean, low, high = difference(old, new)
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def decimals(*columns: Floats) -> int:
    """Decimals with which means of these scores are shown: one more than their error needs."""
    error = max(float(values.std()) / math.sqrt(len(values)) for values in columns)
    return 4 if error == 0 else min(max(1 - math.floor(math.log10(error)), 0), 8)
