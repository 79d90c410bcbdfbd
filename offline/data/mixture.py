"""`Mixture`: batches with an explicit share from each source of transitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator

from offline.data.batch import Batch, join_batches
from offline.errors import InputError


class Source(Protocol):
    """Transitions to draw from."""

    def __len__(self) -> int:
        """How many could be drawn now."""

    def sample(self, batch_size: int, generator: Generator | None = None) -> Batch:
        """Draw uniformly with replacement."""


@dataclass(frozen=True)
class Share:
    """One source of a mixture."""

    name: str
    source: Source
    fraction: float
    """Of every batch, while no source is empty."""
    key_offset: int = 0
    """Added to this source's keys, so that no two sources share one."""


class Mixture:
    """Draws from several sources in fixed shares; an empty source's share goes to the others.

    Args:
        shares: fractions that sum to 1.

    Raises:
        InputError: fractions that are negative or do not sum to 1; when sampling, all empty.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        total = sum(share.fraction for share in shares)
        if any(share.fraction < 0 for share in shares) or abs(total - 1) > 1e-6:
            text = ", ".join(f"{share.name} {share.fraction:g}" for share in shares)
            raise InputError(f"shares of a batch are at least 0 and sum to 1, received {text}")
        self.shares = tuple(shares)

    def __len__(self) -> int:
        return sum(len(share.source) for share in self.shares if share.fraction)

    def counts(self, batch_size: int) -> dict[str, int]:
        """How many of a batch each source gives now: whole numbers that sum to `batch_size`."""
        present = [s for s in self.shares if s.fraction > 0 and len(s.source)]
        if not present:
            raise InputError("there is nothing to learn from yet: no source holds a transition")
        total = sum(share.fraction for share in present)
        exact = [batch_size * share.fraction / total for share in present]
        counts = [int(number) for number in exact]
        by_rest = sorted(range(len(present)), key=lambda i: counts[i] - exact[i])
        for i in by_rest[: batch_size - sum(counts)]:  # largest remainders
            counts[i] += 1
        return {share.name: count for share, count in zip(present, counts, strict=True)}

    def sample(self, batch_size: int, generator: Generator | None = None) -> Batch:
        """A batch in the order of the sources, not shuffled."""
        counts = self.counts(batch_size)
        parts = []
        for share in self.shares:
            if not counts.get(share.name):
                continue
            batch = share.source.sample(counts[share.name], generator)
            if batch.key is not None and share.key_offset:
                known = torch.where(batch.key < 0, batch.key, batch.key + share.key_offset)
                batch = dataclasses.replace(batch, key=known)
            parts.append(batch)
        return parts[0] if len(parts) == 1 else join_batches(parts)
