"""How well a value ranks the images of one prompt, on prompts that it has not seen.

Steering chooses among images of one prompt, so what counts is the order within a prompt. A value
that knows only which prompts are hard has a high R^2 and is of no use.

Shapes: N prompts, B images of each.
"""

from __future__ import annotations

import math

from torch import Tensor


def rank_correlation(values: Tensor, rewards: Tensor) -> float:
    """Spearman's rank correlation within prompts, its mean over the prompts whose images differ in
    reward; ties get their mean rank. NaN where no prompt's do.

    Args:
        values, rewards: (N, B).
    """
    told = rewards.amax(1) > rewards.amin(1)
    if not told.any():
        return math.nan
    one, other = (_centred(_ranks(part[told])) for part in (values, rewards))
    sizes = one.norm(dim=1) * other.norm(dim=1)
    return float(((one * other).sum(1) / sizes.clamp_min(1e-12)).mean())


def share_of_best(values: Tensor, rewards: Tensor) -> float:
    """The gain of the image with the highest value over a random one, in shares of the gain of the
    best image: 1 where the best one is always found, 0 for a choice at random. Each is a mean over
    prompts first. NaN where no prompt's images differ in reward.

    Args:
        values, rewards: (N, B).
    """
    mean, best = rewards.mean(1), rewards.amax(1)
    found = rewards.gather(1, values.argmax(1, keepdim=True)).squeeze(1)
    possible = float((best - mean).mean())
    return float((found - mean).mean()) / possible if possible > 0 else math.nan


def explained(values: Tensor, rewards: Tensor) -> float:
    """R^2: 1 less the squared error in variances of the reward; NaN where that is 0."""
    error, spread = (values - rewards).square().mean(), rewards.var(correction=0)
    return float(1 - error / spread) if spread > 0 else math.nan


def _ranks(values: Tensor) -> Tensor:
    """(N, B) ranks from 0.5; equal values get their mean rank."""
    mine, others = values[:, :, None], values[:, None, :]
    return (mine > others).double().sum(2) + 0.5 * (mine == others).double().sum(2)


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(1, keepdim=True)
