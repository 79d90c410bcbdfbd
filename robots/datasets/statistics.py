"""Running statistics over more actions than fit in memory, and the specs and hashes made of them.

Shape legend: N actions, A action dimensions.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np

from offline.data.episodes import Episode
from offline.errors import InputError
from offline.spec import ActionSpec

ROWS = 1_000_000  # kept for percentiles; every action up to here, then evenly thinned


class ActionStatistics:
    """Exact min, max, mean and std, and percentiles of an even thinning to at most `ROWS` rows.

    Rows with NaN or infinite entries are left out: they are reported where episodes are checked.
    """

    def __init__(self, rows: int = ROWS) -> None:
        self.count = 0
        self._rows = rows
        self._stride = 1
        self._kept: list[np.ndarray] = []
        self._num_kept = 0

    def add(self, actions: np.ndarray) -> None:
        """Take in actions (N, A)."""
        actions = np.asarray(actions, np.float64)
        actions = actions[np.isfinite(actions).all(1)]
        if not len(actions):
            return
        new = len(actions)
        mean, square = actions.mean(0), ((actions - actions.mean(0)) ** 2).sum(0)
        if self.count == 0:
            self.mean, self._square = mean, square
            self.min, self.max = actions.min(0), actions.max(0)
        else:  # Chan et al. 1979: merging two sets' sums of squared deviations
            total = self.count + new
            delta = mean - self.mean
            self._square = self._square + square + delta**2 * self.count * new / total
            self.mean = self.mean + delta * new / total
            self.min = np.minimum(self.min, actions.min(0))
            self.max = np.maximum(self.max, actions.max(0))
        first = -self.count % self._stride  # rows 0, stride, 2 stride, ... of the whole stream
        self._kept.append(actions[first :: self._stride].astype(np.float32))
        self._num_kept += len(self._kept[-1])
        self.count += new
        while self._num_kept > self._rows:
            self._kept = [np.concatenate(self._kept)[::2]]
            self._num_kept = len(self._kept[0])
            self._stride *= 2

    @property
    def std(self) -> np.ndarray:
        """(A,) standard deviation."""
        return np.sqrt(self._square / self.count)

    def percentiles(self, *which: float) -> np.ndarray:
        """(len(which), A)."""
        return np.percentile(np.concatenate(self._kept), which, axis=0)

    def apply(self, spec: ActionSpec) -> ActionSpec:
        """The same spec with the statistics of these actions."""
        p01, p99 = self.percentiles(1, 99)
        return dataclasses.replace(
            spec,
            mean=tuple(self.mean.tolist()),
            std=tuple(self.std.tolist()),
            p01=tuple(p01.tolist()),
            p99=tuple(p99.tolist()),
        )


def spec_from_actions(actions: Iterable[np.ndarray], name: str) -> ActionSpec:
    """A spec for data that has none: statistics from the actions, bounds as well as one can tell.

    Bounds are [-1, 1] when all actions lie within (the convention of nearly all simulators), else
    the least and the greatest action of each dimension.

    Args:
        actions: arrays (N, A), read one after the other.
        name: of the dataset, for the error.

    Raises:
        InputError: there is not one finite action.
    """
    found = ActionStatistics()
    for block in actions:
        found.add(block)
    if not found.count:
        raise InputError(f"{name} has no finite actions to take statistics of")
    low, high = guess_bounds(found.min, found.max)
    return found.apply(ActionSpec.from_bounds(low.tolist(), high.tolist()))


def guess_bounds(least: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (A,), (A,) of actions whose extremes are these: [-1, 1] when all lie within."""
    one = np.ones_like(least)
    inside = (least >= -one - 1e-6).all() and (most <= one + 1e-6).all()
    return (-one, one) if inside else (least, most)


class ContentHash:
    """SHA-256 over every episode's actions, rewards and observations, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, episode: Episode) -> None:
        """Take in one more episode."""
        arrays = {"actions": episode.actions, "rewards": episode.rewards}
        arrays |= {f"obs/{key}": episode.obs[key] for key in sorted(episode.obs)}
        for name, values in arrays.items():
            self._hash.update(f"{name} {values.dtype.str} {values.shape};".encode())
            self._hash.update(np.ascontiguousarray(values).tobytes())

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return self._hash.hexdigest()
