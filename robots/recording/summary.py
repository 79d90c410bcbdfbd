"""Statistics of a recording's features, as LeRobot normalises by them: of an episode, and of all.

min, max, mean, std, count and the quantiles q01, q10, q50, q90, q99; of pictures for each channel,
in [0, 1], of shape (3, 1, 1). Quantiles of all episodes are means weighted by steps, as LeRobot's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
Statistics = dict[str, np.ndarray]


def of_rows(values: np.ndarray) -> Statistics:
    """Of a vector's or a number's T rows: (T, D) or (T,)."""
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    found["count"] = np.array([len(rows)])
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    return found | dict(zip(QUANTILES, quantiles, strict=True))


def of_pictures(pictures: Sequence[np.ndarray]) -> Statistics:
    """Of pictures (height, width, 3) of bytes, each channel's."""
    pixels = np.concatenate([p[::4, ::4].reshape(-1, 3) for p in pictures]) / 255.0
    found = of_rows(pixels)
    count = np.array([len(pictures)])
    return {k: count if k == "count" else v.reshape(3, 1, 1) for k, v in found.items()}


def join(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one feature over all episodes, as JSON."""
    each = [{key: np.asarray(value, np.float64) for key, value in part.items()} for part in parts]
    counts = np.array([part["count"].sum() for part in each])
    total = counts.sum()

    def weighted(values: np.ndarray) -> np.ndarray:
        return np.tensordot(counts / total, values, 1)

    stacked = {key: np.stack([part[key] for part in each]) for key in each[0] if key != "count"}
    mean = weighted(stacked["mean"])
    variance = weighted(stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)
    found = {key: weighted(stacked[key]) for key in QUANTILES}
    found |= {"min": stacked["min"].min(0), "max": stacked["max"].max(0)}
    found |= {"mean": mean, "std": np.sqrt(variance), "count": np.array([int(total)])}
    return {key: value.tolist() for key, value in found.items()}
