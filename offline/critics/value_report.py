"""Diagnostics of a critic on transitions it was not trained on."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from torch import Generator

from offline.critics.value import ValueFunction
from offline.data.mixed_transitions import Data


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties half; NaN if either is missing.

    Args:
        scores: (N,).
        positive: (N,) bool.
    """
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not ones or not zeros:
        return math.nan
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


@torch.no_grad()
def held_out_report(
    value: ValueFunction,
    data: Data,
    *,
    seed: int,
    transitions: int = 8192,
    candidates: int = 8,
    batch_size: int = 1024,
) -> dict[str, float]:
    """Diagnostics of min_e Q on (a sample of) `data`.

        value/auc_success       of Q, transitions of successful against failed episodes
        value/rank_correlation  Spearman's, of Q and the Monte-Carlo return
        value/bias              mean of Q minus the Monte-Carlo return
        value/q_data            mean Q of the data's chunks
        value/beats_uniform     share of (s, a) that score above a uniform random chunk at s
        value/beats_others      the same against chunks of other transitions: harder, since both
                                look like data
        value/spread            mean std of Q over those chunks, at one state: what ranks them

    Every number is NaN where it is not defined, as the AUC without failures.
    """
    generator = Generator().manual_seed(seed)
    device = next(value.parameters()).device
    scores, uniform_wins, other_wins, spreads, returns, success = [], [], [], [], [], []
    for _ in range(max(1, math.ceil(min(transitions, len(data)) / batch_size))):
        batch = data.sample(min(batch_size, len(data)), generator)
        size, shape = len(batch), batch.act.shape[1:]
        uniform = torch.rand(size, candidates, *shape, generator=generator) * 2 - 1
        others = batch.act[torch.randint(size, (size, candidates), generator=generator)]
        chunks = torch.cat([batch.act[:, None], uniform, others], dim=1)
        q = value(batch.to(device).obs, chunks.to(device)).amin(0).cpu()
        q_data, q_uniform, q_others = q.split([1, candidates, candidates], dim=1)
        scores.append(q_data[:, 0])
        uniform_wins.append((q_data > q_uniform).float().mean(1))
        other_wins.append((q_data > q_others).float().mean(1))
        spreads.append(q_others.std(1))
        returns.append(batch.mc_return)
        success.append(batch.success)
    q, mc, won = (torch.cat(x).numpy() for x in (scores, returns, success))
    known = np.isfinite(won)
    told = np.isfinite(mc)  # the return of what a human took over is not known
    varied = bool(told.any()) and np.ptp(q[told]) > 0 and np.ptp(mc[told]) > 0
    rank = float(spearmanr(q[told], mc[told]).statistic) if varied else math.nan
    return {
        "value/auc_success": auc(q[known], won[known] > 0.5),
        "value/rank_correlation": rank,
        "value/bias": float((q - mc)[told].mean()) if told.any() else math.nan,
        "value/q_data": float(q.mean()),
        "value/beats_uniform": float(torch.cat(uniform_wins).mean()),
        "value/beats_others": float(torch.cat(other_wins).mean()),
        "value/spread": float(torch.cat(spreads).mean()),
        "value/held_out_transitions": float(len(data)),
    }
