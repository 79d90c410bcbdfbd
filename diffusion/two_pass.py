"""The exact gradient of a trajectory objective in the memory of one micro-batch.

The loss couples all T steps and all M chains, but only through the numbers log_prob (M, T):

    pass 1   log_prob without a graph; then c = dL / d log_prob, an (M, T) table of numbers
    pass 2   for each micro-batch of (chain, step) pairs: forward, backward with cotangent c

By the chain rule this accumulates the very gradient that one graph over everything would give,
while only one micro-batch's activations ever exist. Entries with c = 0 (clipped, or weight 0) are
skipped, which is exact too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.objective import Objective, Rollouts

ScoreFn = Callable[[Tensor, Tensor], Tensor]  # rows (m,), steps (m,) -> log-probs (m,)
Backward = Callable[[Tensor, Tensor], None]


def log_probs(score: ScoreFn, rollouts: Rollouts, micro_batch: int) -> Tensor:
    """Pass 1: (M, T) log-probs under the current weights, no graph; unused steps stay 0."""
    out = torch.zeros_like(rollouts.log_prob_old)
    used = (rollouts.step_weight > 0).expand(*out.shape)
    rows, steps = used.nonzero(as_tuple=True)
    with torch.no_grad():
        for i in range(0, len(rows), micro_batch):
            r, s = rows[i : i + micro_batch], steps[i : i + micro_batch]
            out[r, s] = score(r, s).to(out.dtype)
    return out


def two_pass_backward(
    score: ScoreFn,
    objective: Objective,
    rollouts: Rollouts,
    micro_batch: int,
    *,
    current: Tensor | None = None,
    backward: Backward = Tensor.backward,
) -> dict[str, float]:
    """Accumulate dL/d(weights) into `.grad` and return the objective's metrics.

    `current` (M, T): log-probs already known for the current weights. Right after a rollout they
    are the stored old ones, and pass 1 is free. `backward` takes log-probs (m,) and their
    cotangents (m,).
    """
    numbers = log_probs(score, rollouts, micro_batch) if current is None else current
    leaf = numbers.detach().clone().requires_grad_(True)
    loss, metrics = objective(leaf, rollouts)
    (cotangent,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    if cotangent is None:
        return metrics
    rows, steps = cotangent.nonzero(as_tuple=True)
    for i in range(0, len(rows), micro_batch):
        r, s = rows[i : i + micro_batch], steps[i : i + micro_batch]
        values = score(r, s)
        backward(values, cotangent[r, s].to(values.dtype))
    return metrics
