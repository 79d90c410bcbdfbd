"""Outcome of every evaluation episode of a training run: evaluations/step-000000.csv.

    episode, seed, success, return, length

One file for each evaluation, so that one that is done again after a resume replaces it. The layouts
are the same in all of them, which is what makes a paired test of before and after possible.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genpol.steering.paired_episodes import Rollouts
from offline.files import write_beside

_NAME = re.compile(r"step-(\d+)\.csv")
_COLUMNS = ["episode", "seed", "success", "return", "length"]


@dataclass(frozen=True)
class Outcomes:
    """N episodes, in the order of the layouts."""

    seeds: np.ndarray
    """(N,) of the layouts."""
    success: np.ndarray
    """(N,) bool."""
    returns: np.ndarray
    """(N,) sums of the environment's rewards."""
    lengths: np.ndarray
    """(N,) steps."""


def write_outcomes(rollouts: Rollouts, folder: Path, step: int) -> Path:
    """Write the episodes of the evaluation at `step`; returns the table's path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for i, (seed, success, returned, length) in enumerate(
        zip(rollouts.seeds, rollouts.success, rollouts.returns, rollouts.lengths, strict=True)
    ):
        writer.writerow([i, int(seed), int(success), repr(float(returned)), int(length)])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}.csv"
    write_beside(path, text.getvalue().encode())
    return path


def read_outcomes(folder: Path) -> dict[int, Outcomes]:
    """What `write_outcomes` wrote, by step, the earliest first; empty where there is nothing."""
    found = {}
    for path in folder.glob("step-*.csv"):
        if match := _NAME.fullmatch(path.name):
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            found[int(match[1])] = Outcomes(
                seeds=np.array([int(row["seed"]) for row in rows]),
                success=np.array([row["success"] == "1" for row in rows]),
                returns=np.array([float(row["return"]) for row in rows]),
                lengths=np.array([int(row["length"]) for row in rows]),
            )
    return dict(sorted(found.items()))
