"""The exact gradient of a trajectory objective in the memory of one micro-batch.

The loss couples all T steps and all M chains, but only through the numbers log_prob (M, T):

    pass 1   log_prob without a graph; then c = dL / d log_prob, an (M, T) table of numbers
    pass 2   for each micro-batch of (chain, step) pairs: forward, backward with cotangent c

By the chain rule this accumulates the very gradient that one graph over everything would give,
while only one micro-batch's activations ever exist. Entries with c = 0 (clipped, or weight 0) are
skipped, which is exact too. An objective may need several numbers of each step, or of each draw of
the forward process: the table is then (M, T, C).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.objective import Objective, Rollouts

ScoreFn = Callable[[Tensor, Tensor], Tensor]  # rows (m,), steps (m,) -> (m,) or (m, C)
Backward = Callable[[Tensor, Tensor], None]


def log_probs(score: ScoreFn, rollouts: Rollouts, micro_batch: int) -> Tensor:
    """Pass 1: (M, T) or (M, T, C) under the current weights, no graph; unused steps stay 0."""
    out: Tensor | None = None
    used = (rollouts.step_weight > 0).expand(*rollouts.log_prob_old.shape)
    rows, steps = used.nonzero(as_tuple=True)
    with torch.no_grad():
        for i in range(0, len(rows), micro_batch):
            r, s = rows[i : i + micro_batch], steps[i : i + micro_batch]
            values = score(r, s).to(rollouts.log_prob_old.dtype)
            if out is None:
                out = values.new_zeros(*rollouts.log_prob_old.shape, *values.shape[1:])
            out[r, s] = values
    assert out is not None, "a table without steps"
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

    `current` (M, T[, C]): the table where it is known for the current weights. Right after a
    rollout log-probs are the stored old ones, and pass 1 is free. `backward` takes values (m[, C])
    and their cotangents. An objective that is `linear` in its table needs no pass 1; the numbers
    that its metrics are made of are those of pass 2.
    """
    linear = current is None and getattr(objective, "linear", False)
    if linear:
        count = objective.terms_per_draw  # type: ignore[attr-defined]
        shape = (*rollouts.log_prob_old.shape, count) if count > 1 else rollouts.log_prob_old.shape
        numbers = torch.zeros(shape, dtype=rollouts.log_prob_old.dtype)
    else:
        numbers = log_probs(score, rollouts, micro_batch) if current is None else current
    leaf = numbers.detach().clone().requires_grad_(True)
    loss, metrics = objective(leaf, rollouts)
    (cotangent,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    if cotangent is None:
        return metrics
    used = cotangent if cotangent.ndim == 2 else cotangent.abs().sum(-1)
    rows, steps = used.nonzero(as_tuple=True)
    for i in range(0, len(rows), micro_batch):
        r, s = rows[i : i + micro_batch], steps[i : i + micro_batch]
        values = score(r, s)
        backward(values, cotangent[r, s].to(values.dtype))
        if linear:
            numbers[r, s] = values.detach().to(numbers.dtype)
    return objective(numbers, rollouts)[1] if linear else metrics
