"""Is a newer value better than the one that is served? Episodes that neither has learnt from say.

Each value scores what was executed at every decision of the held-out episodes. A value is judged by
how well its scores tell decisions of successful episodes from those of failed ones:

    auc = P(Q of a success > Q of a failure), ties half

The newer value is worse where its auc is lower by more than one standard error of the difference,
which is taken by drawing the episodes again (bootstrap). Where the held-out episodes do not hold
successes and failures, nothing speaks against the newer value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offline.critics.value import ValueFunction
from offline.critics.value_report import auc
from offline.data.episodes import Episodes
from offline.data.recorded_rows import LEARNT
from offline.data.transitions import Embed, Transitions
from offline.errors import InputError
from offline.networks.normalizer import LANGUAGE

DRAWS = 200  # of the episodes
NEWEST = 100  # held-out episodes that are looked at


@dataclass(frozen=True)
class Verdict:
    """What held-out episodes say of a newer value beside the present one."""

    episodes: int
    """Held out from both, with a known outcome."""
    newer: float = math.nan
    """auc."""
    present: float = math.nan
    error: float = math.nan
    """Standard error of their difference."""

    @property
    def worse(self) -> bool:
        """Whether the newer one is worse beyond the error."""
        return self.newer < self.present - self.error  # False where one is NaN

    def __str__(self) -> str:
        if math.isnan(self.newer):
            return f"{self.episodes} held-out episodes, which do not tell"
        return (
            f"AUC {self.newer:.3f}, before {self.present:.3f}, on {self.episodes} held-out "
            f"episodes (error of the difference {self.error:.3f})"
        )


def judge(
    newer: ValueFunction,
    present: ValueFunction,
    episodes: Episodes,
    *,
    language: Embed | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Verdict:
    """Compare two values on the episodes that neither has learnt from.

    Args:
        newer, present: the values.
        episodes: recorded ones. Those whose id is in a value's `meta["learnt_from"]` are not held
            out. The newest `NEWEST` of the others are looked at.
        language: embeds instructions, for values that see them.
        stop: asked between episodes.
    """
    scores: list[tuple[np.ndarray, np.ndarray, bool]] = []
    for index in held_out(episodes, newer, present):
        if stop():
            break
        try:
            ours = episode_scores(newer, episodes, index, language)
            theirs = episode_scores(present, episodes, index, language)
        except InputError:  # too short for a chunk, or not observed as a value needs it
            continue
        if ours is not None and theirs is not None:
            scores.append((ours[0], theirs[0], ours[1]))
    if len({won for *_, won in scores}) < 2:
        return Verdict(len(scores))
    newer_auc, present_auc = (_auc(scores, which) for which in (0, 1))
    draw, differences = np.random.default_rng(0), []
    for _ in range(DRAWS):
        rows = [scores[i] for i in draw.integers(len(scores), size=len(scores))]
        if len({won for *_, won in rows}) == 2:
            differences.append(_auc(rows, 0) - _auc(rows, 1))
    error = float(np.std(differences)) if differences else math.nan
    return Verdict(len(scores), newer_auc, present_auc, error)


def held_out(episodes: Episodes, *values: Any) -> list[int]:
    """The newest episodes that no value has learnt from, oldest first."""
    learnt = {str(one) for value in values for one in (value.meta.get(LEARNT) or ())}
    found: list[int] = []
    for index in range(len(episodes) - 1, -1, -1):
        facts = getattr(episodes, "facts", None)
        known = facts(index).id if facts is not None else None
        if known is None:
            known = episodes[index].meta.get("id")
        if known is not None and str(known) in learnt:
            continue
        found.append(index)
        if len(found) == NEWEST:
            break
    return found[::-1]


@torch.no_grad()
def episode_scores(
    value: ValueFunction, episodes: Episodes, index: int, language: Embed | None
) -> tuple[np.ndarray, bool] | None:
    """(D,) the value of what the policy executed at each decision of an episode, and whether it
    succeeded. None where nobody has said, or where a human did all of it."""
    keys = [key for key in value.obs_shapes if key != LANGUAGE]
    data = Transitions(
        episodes,
        value.spec.chunk,
        spec=value.spec,
        reward="none",
        indices=[index],
        obs_keys=keys,
        language=language if LANGUAGE in value.obs_shapes else None,
    )
    device, found, outcome = next(value.parameters()).device, list[Tensor](), list[Tensor]()
    for batch in data.batches(256):
        there = batch.to(device)
        found.append(value(there.obs, there.act[:, None]).amin(0)[:, 0].cpu())
        outcome.append(batch.success)
    q, won = torch.cat(found).numpy(), torch.cat(outcome).numpy()
    known = np.isfinite(won)  # what a human took over says nothing of the policy
    if not known.any():
        return None
    return q[known], bool(won[known][0] > 0.5)


def _auc(scores: Sequence[tuple[np.ndarray, np.ndarray, bool]], which: int) -> float:
    each = [(one[0] if which == 0 else one[1], one[2]) for one in scores]
    won = np.concatenate([np.full(len(q), success) for q, success in each])
    return auc(np.concatenate([q for q, _ in each]), won)
