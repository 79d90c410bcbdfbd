"""Policy filtration: train on the best and the worst of each group (arXiv 2409.06957).

A learned reward is most reliable at its extremes: what it ranks in the middle of a group is mostly
its noise. PF-PPO's "BW" keeps the best and the worst of the samples of a prompt; here the best k
and the worst k. All samples count as drawn, and whatever an objective makes of a whole group, such
as an advantage, is made before some are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor


def best_and_worst(reward: Tensor, group: Tensor, keep: int) -> Tensor:
    """Rows of the `keep` highest and the `keep` lowest rewards of each group, in ascending order.

    Args:
        reward: (M,).
        group: (M,) ids.
        keep: k, above 0. Of a group of at most 2 k, all are kept. Among equal rewards, the row that
            comes first counts as better.
    """
    kept = []
    for one in group.unique():
        rows = (group == one).nonzero().flatten()
        ranked = rows[reward[rows].argsort(descending=True, stable=True)]
        kept.append(
            ranked if len(ranked) <= 2 * keep else torch.cat([ranked[:keep], ranked[-keep:]])
        )
    return torch.cat(kept).sort().values
