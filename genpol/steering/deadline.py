"""Latency of decisions: percentiles for the report, and the K that meets a deadline."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
import torch

KEPT = 10_000  # decisions whose latency is remembered


class Laps:
    """Seconds between marks, by the clock of the device that computes.

    A GPU is told what to do and does it later. So its marks are events in its own queue, and
    `seconds` waits for the last of them.

    Args:
        device: what computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_a_gpu = device.type == "cuda"
        self.device = device
        self._marks: list[tuple[str, Any]] = []
        self.mark("")

    def mark(self, part: str) -> None:
        """What began at the mark before, named `part`, ends here."""
        if not self.on_a_gpu:
            self._marks.append((part, perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        self._marks.append((part, event))

    def seconds(self) -> dict[str, float]:
        """Of each part."""
        if self.on_a_gpu:
            self._marks[-1][1].synchronize()
        found: dict[str, float] = {}
        for (_, began), (part, ended) in pairwise(self._marks):
            took = began.elapsed_time(ended) / 1e3 if self.on_a_gpu else ended - began
            found[part] = found.get(part, 0.0) + took
        return found


class LatencyMeter:
    """Seconds of the latest decisions, in all and by part."""

    def __init__(self) -> None:
        self.seconds: deque[float] = deque(maxlen=KEPT)
        self.parts: dict[str, float] = {}
        self.count = 0

    def add(self, timing: dict[str, float]) -> None:
        """Count one decision, with the seconds of each of its parts."""
        self.count += 1
        self.seconds.append(sum(timing.values()))
        for part, seconds in timing.items():
            self.parts[part] = self.parts.get(part, 0.0) + seconds

    def clear(self) -> None:
        """Forget all decisions so far."""
        self.seconds.clear()
        self.parts, self.count = {}, 0

    def percentile(self, q: float) -> float:
        """Seconds that q % of the decisions stay under; NaN before the first."""
        return float(np.percentile(self.seconds, q)) if self.seconds else float("nan")

    def mean_parts(self) -> dict[str, float]:
        """Mean seconds of each part."""
        return {part: seconds / self.count for part, seconds in self.parts.items()}


class Pace:
    """How many candidates fit before a deadline, learnt from what batches have cost.

    Batches grow: `first` proposals, then as many again as there are, while the next is expected to
    end in time. What a batch of n costs is a running mean; for an n never tried, that of the
    nearest smaller one times the ratio of sizes, which overstates it for a policy that answers a
    batch in one pass. `first` itself doubles when there was time left for it and halves when the
    deadline was missed, so a batched policy is soon asked once.
    """

    def __init__(self, deadline: float, most: int) -> None:
        """
        Args:
            deadline: seconds from the observation to the action.
            most: K, never exceeded.
        """
        self.deadline, self.most = deadline, most
        self.first = min(4, most)
        self._cost: dict[int, float] = {}
        self._rest = 0.0  # seconds of scoring and selecting

    def next_batch(self, have: int, elapsed: float) -> int:
        """Proposals to ask for now, with `have` in hand after `elapsed` seconds; 0 to stop.

        The first batch is halved until it fits into what is left, down to one proposal.
        """
        if have == 0:
            size = self.first
            while size > 1 and not self._fits(size, elapsed):
                size //= 2
            return size
        more = min(have, self.most - have)
        return more if more and self._fits(more, elapsed) else 0

    def learn_batch(self, size: int, seconds: float) -> None:
        """A batch of `size` took so long."""
        before = self._cost.get(size, seconds)
        self._cost[size] = before + 0.3 * (seconds - before)

    def learn_decision(self, num: int, rest: float, total: float) -> None:
        """A decision with `num` proposals took `total`, `rest` of it after the last proposal."""
        self._rest += 0.3 * (rest - self._rest) if self._rest else rest
        if total > self.deadline:
            self.first = max(1, self.first // 2)
        elif num >= 2 * self.first and total < 0.8 * self.deadline:
            self.first = min(2 * self.first, self.most)

    def _fits(self, size: int, elapsed: float) -> bool:
        return elapsed + self._expected(size) + self._rest <= self.deadline

    def _expected(self, size: int) -> float:
        if size in self._cost:
            return self._cost[size]
        known = max((n for n in self._cost if n < size), default=None)
        if known is None:
            return min(self._cost.values(), default=0.0)
        return self._cost[known] * size / known
