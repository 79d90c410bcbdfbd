"""The exact gradient of a trajectory objective in the memory of one micro-batch.

The loss couples all T steps and all M chains, but only through the numbers log_prob (M, T):

    pass 1   log_prob without a graph; then c = dL / d log_prob, an (M, T) table of numbers
    pass 2   for each micro-batch of (chain, step) pairs: forward, backward with cotangent c

By the chain rule this accumulates the very gradient that one graph over everything would give,
while only one micro-batch's activations ever exist. Entries with c = 0 (clipped, or weight 0) are
skipped, which is exact too. An objective may need several numbers of each step, or of each draw of
the forward process: the table is then (M, T, C).

In a run of several processes each has both passes of the rows that it holds. The table is gathered
in between, so that c is the same everywhere; the sum of the processes' gradients is the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from diffusion.chain import sent
from diffusion.fitting import Fitting, fitting
from diffusion.objective import Objective, Rollouts, ScoredPart, filled
from diffusion.ranks import Share, whole

ScoreFn = Callable[[Tensor, Tensor], Tensor]  # held rows (m,), steps (m,) -> (m,) or (m, C)
Backward = Callable[[Tensor, Tensor], None]
# What will be scored in which order, and how much at a time.
Ahead = Callable[[Tensor, Tensor, Fitting], AbstractContextManager[None]]


def log_probs(
    score: ScoreFn,
    rollouts: Rollouts,
    micro_batch: int | Fitting,
    share: Share | None = None,
    ahead: Ahead | None = None,
) -> Tensor:
    """Pass 1: (M, T) or (M, T, C) under the current weights, no graph; unused steps stay 0."""
    old = rollouts.log_prob_old
    share = share or whole(len(old))
    parts: list[ScoredPart] = []
    used = (rollouts.step_weight > 0).expand(*old.shape)
    rows, steps = used.nonzero(as_tuple=True)
    held = share.items(rows)

    def part(first: int, last: int) -> None:
        some = held.part(first, last)
        s = steps[some.items]
        parts.append((some.held, s, score(some.held, s), some.padding))

    batch = fitting(micro_batch)
    with torch.no_grad(), _ahead(ahead, held, steps, batch):
        batch.over(held.most, part)
    assert parts, "a table without steps"
    return share.gather(filled(parts, len(share.held), old))


def two_pass_backward(
    score: ScoreFn,
    objective: Objective,
    rollouts: Rollouts,
    micro_batch: int | Fitting,
    *,
    current: Tensor | None = None,
    backward: Backward = Tensor.backward,
    share: Share | None = None,
    ahead: Ahead | None = None,
    restart: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Accumulate dL/d(weights) into `.grad` and return the objective's metrics.

    `current` (M, T[, C]): the table where it is known for the current weights. Right after a
    rollout log-probs are the stored old ones, and pass 1 is free. `backward` takes values (m[, C])
    and their cotangents. An objective that is `linear` in its table needs no pass 1; the numbers
    that its metrics are made of are those of pass 2. `share` says who holds which of the M rows; by
    default this process holds all of them.

    `ahead` is told which pairs will be scored in which order. Where memory runs out in a backward
    pass, a part of a micro-batch may be in `.grad` already: `restart` sets it to what it was
    before, and pass 2 begins again with smaller micro-batches. A `micro_batch` that is found needs
    it.
    """
    batch = fitting(micro_batch)
    assert restart is not None or not batch.auto, "an interrupted backward pass has to be undone"
    share = share or whole(len(rollouts.log_prob_old))
    linear = current is None and getattr(objective, "linear", False)
    if linear:
        count = objective.terms_per_draw  # type: ignore[attr-defined]
        shape = (*rollouts.log_prob_old.shape, count) if count > 1 else rollouts.log_prob_old.shape
        numbers = torch.zeros(shape, dtype=rollouts.log_prob_old.dtype)
    else:
        numbers = log_probs(score, rollouts, batch, share, ahead) if current is None else current
    leaf = numbers.detach().clone().requires_grad_(True)
    loss, metrics = objective(leaf, rollouts)
    (cotangent,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    if cotangent is None:
        return metrics
    used = cotangent if cotangent.ndim == 2 else cotangent.abs().sum(-1)
    rows, steps = used.nonzero(as_tuple=True)
    held = share.items(rows)

    said: list[ScoredPart] = []

    def part(first: int, last: int) -> None:
        some = held.part(first, last)
        r, s = rows[some.items], steps[some.items]
        values = score(some.held, s)
        weight = sent(cotangent[r, s].to(values.dtype), values.device)
        backward(values, torch.zeros_like(weight) if some.padding else weight)
        if linear:
            said.append((some.held, s, values.detach(), some.padding))

    def begin_again() -> None:
        assert restart is not None
        restart()
        said.clear()

    with _ahead(ahead, held, steps, batch):
        batch.over(held.most, part, begin_again if restart else None)
    if not linear:
        return metrics
    numbers = share.gather(filled(said, len(share.held), numbers)) if said else numbers
    return objective(numbers, rollouts)[1]


def _ahead(
    ahead: Ahead | None, held: Share, steps: Tensor, batch: Fitting
) -> AbstractContextManager[None]:
    """Within this context the pairs that this process holds, padded as `Share.part` does it, are
    known to be coming."""
    if ahead is None:
        return nullcontext()
    rows, columns = held.place[held.mine], steps[held.mine]
    padding = held.most - len(rows)
    if padding:
        rows = torch.cat([rows, rows.new_zeros(padding)])
        columns = torch.cat([columns, steps[:1].expand(padding)])
    return ahead(rows, columns, batch)
