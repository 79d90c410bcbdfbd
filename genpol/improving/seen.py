"""What a page says of a recording: one line for each episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genpol.improving.learner import Counts


@dataclass(frozen=True)
class Seen:
    """One recorded episode."""

    index: int
    success: bool | None
    """None: nobody has said."""
    version: str
    """Which version of the value decided last, as the server says it; "" is the policy alone."""
    steps: int
    """Actions that were executed."""
    by_hand: int = 0
    """Of these by a human."""
    dropped: int = 0
    """Decisions without their observation."""
    ended: str = ""
    """How: "success", "reset", "closed", "lost" and so on."""


def counts_of(seen: Sequence[Seen]) -> Counts:
    """How many there are to learn from."""
    labelled = [episode.success for episode in seen if episode.success is not None]
    return Counts(len(seen), len(labelled), sum(labelled))
