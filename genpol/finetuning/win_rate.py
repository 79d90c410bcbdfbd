"""How often one arm's picture scores higher than another's, prompt by prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from genpol.reports.stats import wilson
from offline.errors import InputError


@dataclass(frozen=True)
class WinRate:
    """The share of n pairs that are won, ties half, with its 95 % Wilson interval."""

    share: float
    low: float
    high: float
    ties: float
    """Share of the pairs that are ties."""
    pairs: int

    def __str__(self) -> str:
        return f"{100 * self.share:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"


def win_rate(one: ArrayLike, other: ArrayLike) -> WinRate:
    """How often `one` scores higher than `other` on the same prompt; a tie counts half.

        share = (wins + ties / 2) / n

    Unlike a difference of means it does not depend on the scale of the scores, nor on a few large
    ones. The interval is Wilson's, over prompts; with ties it is too wide rather than too narrow.

    Args:
        one: (n,) scores.
        other: (n,) scores of the same prompts, and of the same noise where there is one picture
            of each.

    Raises:
        InputError: they are not n numbers each, or there are none, or one is not finite.
    """
    a, b = np.asarray(one, float), np.asarray(other, float)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise InputError(
            f"a win rate needs the same prompts in both arms, received {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("a win rate needs finite scores, received NaN or infinity")
    wins, ties, n = int((a > b).sum()), int((a == b).sum()), len(a)
    score = wins + ties / 2
    low, high = wilson(score, n)
    return WinRate(score / n, low, high, ties / n, n)
