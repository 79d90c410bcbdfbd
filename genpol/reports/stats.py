"""Intervals and tests for success and return on paired episodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offline.errors import InputError

Floats = NDArray[np.float64]
Alternative = Literal["two-sided", "greater", "less"]
BLOCK = 4_000_000  # resampled numbers held at a time


def wilson(successes: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a success rate (Wilson 1927), within [0, 1] and sound at 0 and at n.

        (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n)

    Args:
        successes: 0 to `count`. Ties may count half: the interval is then too wide, never too
            narrow, because halves vary less than successes and failures do.
        count: n, episodes; 0 gives (0, 1).
        confidence: of the two-sided interval.

    Raises:
        InputError: `successes` outside 0..count, or a confidence outside (0, 1).
    """
    if not 0 <= successes <= count:
        raise InputError(f"expected 0 to {count} successes of {count}, received {successes}")
    _check_confidence(confidence)
    if count == 0:
        return 0.0, 1.0
    z, p = NormalDist().inv_cdf((1 + confidence) / 2), successes / count
    centre = p + z * z / (2 * count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == count else (centre + half) / scale
    return low, high


def paired_outcomes(base: ArrayLike, other: ArrayLike) -> dict[str, int]:
    """How often both, only one, or neither of two paired arms succeeded.

    Args:
        base: (N,) bool.
        other: (N,) bool, of the same episodes.
    """
    a, b = (arm != 0 for arm in _paired(base, other))
    return {
        "both": int((a & b).sum()),
        "only_base": int((a & ~b).sum()),
        "only_other": int((~a & b).sum()),
        "neither": int((~a & ~b).sum()),
    }


def mcnemar(base: ArrayLike, other: ArrayLike, alternative: Alternative = "two-sided") -> float:
    """p-value of the exact paired test on success (McNemar, binomial on the discordant pairs).

    Under the null, each of the n pairs with different outcomes falls either way with probability
    1/2; pairs that agree say nothing. Without any discordant pair p is 1.

    Args:
        base: (N,) bool.
        other: (N,) bool, of the same episodes.
        alternative: "greater" asks whether `other` is better, "less" whether it is worse.
    """
    found = paired_outcomes(base, other)
    wins, losses = found["only_other"], found["only_base"]
    n = wins + losses
    if alternative == "greater":
        return _tail(losses, n)
    if alternative == "less":
        return _tail(wins, n)
    return min(1.0, 2 * _tail(min(wins, losses), n))


def paired_difference(
    base: ArrayLike,
    other: ArrayLike,
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> tuple[float, float, float]:
    """mean(other) - mean(base) and its percentile interval, resampling episodes as pairs.

    Args:
        base: (N,) successes or returns.
        other: (N,), of the same episodes.
        rng: of the resampling.

    Returns:
        Difference, low, high.
    """
    a, b = _paired(base, other)
    low, high = bootstrap(b - a, lambda rows: rows.mean(-1), rng, confidence, resamples)
    return float((b - a).mean()), low, high


def iqm(values: ArrayLike) -> float:
    """Interquartile mean: of what is left after a quarter of the values is cut off at each end.

    floor(n / 4) are cut at each end, as in Agarwal et al. 2021 (arXiv 2108.13264, section 4.3).
    """
    return float(_iqm(np.asarray(values, float).ravel()))


def iqm_interval(
    values: ArrayLike,
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> tuple[float, float, float]:
    """Interquartile mean over runs and tasks, with a bootstrap stratified by task.

    Args:
        values: (runs,) or (runs, tasks); runs are resampled within each task.
        rng: of the resampling.

    Returns:
        IQM, low, high.
    """
    table = np.asarray(values, float)
    table = table[:, None] if table.ndim == 1 else table
    runs, tasks = table.shape
    found = []
    for size in _blocks(resamples, table.size):
        rows = rng.integers(runs, size=(size, runs, tasks))
        found.append(_iqm(table[rows, np.arange(tasks)].reshape(size, -1)))
    low, high = _percentiles(np.concatenate(found), confidence)
    return iqm(table), low, high


def bootstrap(
    values: ArrayLike,
    statistic: Callable[[Floats], Floats],
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> tuple[float, float]:
    """Percentile interval of a statistic of values (N,), by resampling them.

    `statistic` maps (R, N) resampled values to (R,).
    """
    values = np.asarray(values, float)
    found = [
        statistic(values[rng.integers(len(values), size=(size, len(values)))])
        for size in _blocks(resamples, len(values))
    ]
    return _percentiles(np.concatenate(found), confidence)


def _tail(k: int, n: int) -> float:
    """P(X <= k) for X ~ Binomial(n, 1/2), in exact integers."""
    return sum(math.comb(n, i) for i in range(k + 1)) / 2**n


def _iqm(rows: Floats) -> Floats:
    count = rows.shape[-1]
    cut = count // 4
    return np.sort(rows, axis=-1)[..., cut : count - cut].mean(-1)


def _blocks(resamples: int, each: int) -> list[int]:
    size = max(1, BLOCK // max(each, 1))
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _percentiles(found: Floats, confidence: float) -> tuple[float, float]:
    _check_confidence(confidence)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(found, [tail, 100 - tail])
    return float(low), float(high)


def _paired(base: ArrayLike, other: ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(base, float), np.asarray(other, float)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise InputError(
            f"a paired test needs the same episodes in both arms, received {a.shape} and {b.shape}"
        )
    return a, b


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"expected a confidence between 0 and 1, received {confidence}")
