"""Rules that choose one of K scored candidates: scores (B, K) -> index (B,).

Candidate 0 is always a plain sample of the base policy, so choosing 0 is not steering. With K = 1
every rule returns 0 and draws nothing, so that one candidate is the base policy exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from offline.draws import moved
from offline.errors import InputError

Select = Callable[[Tensor, Generator | None], Tensor]


def argmax(*, wait: bool = True) -> Select:
    """The best candidate; of equals, the first.

    Args:
        wait: refuse NaN scores wherever they lie. False does so on the CPU alone: on a GPU, to ask
            is to wait for it. Whoever learns by such a choice refuses the NaN loss that it makes.
    """

    def rule(scores: Tensor, generator: Generator | None) -> Tensor:
        best, chosen = scores.max(-1)
        if wait or scores.is_cpu:
            _refuse_nan(best, scores)  # max propagates NaN
        return chosen

    return rule


def softmax(temperature: float, *, standardize: bool = False) -> Select:
    """k ~ softmax(Q_k / temperature), the rule of V-GPS (arXiv 2410.13816).

    Args:
        temperature: in the units of the value, as in the paper; 0 is `argmax`.
        standardize: first divide Q by its standard deviation over the candidates, so that the
            temperature means the same for every critic and state. Then a state where all
            candidates are nearly equal is steered as hard as one where they differ.

    Raises:
        InputError: a negative temperature; or NaN scores, when called.
    """
    require_temperature(temperature)
    best = argmax()

    def rule(scores: Tensor, generator: Generator | None) -> Tensor:
        if temperature == 0 or scores.shape[-1] == 1:
            return best(scores, generator)
        top = scores.amax(-1, keepdim=True)
        below = scores - top
        if not math.isfinite(_total(top)):
            _refuse_nan(top, scores)
            below = torch.where(scores == top, 0.0, below)  # inf - inf is NaN
        if standardize:
            deviation = scores.std(-1, correction=0, keepdim=True).clamp(min=1e-6)
            below = below / torch.nan_to_num(deviation, nan=1.0)
        # argmax(log p - log e) with e ~ Exp(1) is a draw from p, in fewer steps than multinomial
        device = scores.device if generator is None else generator.device
        noise = torch.empty(scores.shape, device=device).exponential_(generator=generator).log_()
        noise = moved(noise, scores.device)
        if temperature != 1:
            below = below.div_(temperature)
        return below.sub_(noise).argmax(-1)

    return rule


def keep_if_better(margin: float = 0.0) -> Select:
    """Candidate 0, the base policy's own sample, unless the best beats it by more than `margin`.

    Args:
        margin: in the units of the value, at least 0.
    """
    if not margin >= 0:
        raise InputError(f"expected a margin of at least 0, received {margin:g}")

    def rule(scores: Tensor, generator: Generator | None) -> Tensor:
        best, chosen = scores.max(-1)
        _refuse_nan(best, scores)
        return torch.where(best > scores[:, 0] + margin, chosen, 0)

    return rule


def random_choice() -> Select:
    """Any candidate, whatever its score: what sampling K and choosing blindly would do."""

    def rule(scores: Tensor, generator: Generator | None) -> Tensor:
        rows, count = scores.shape
        if count == 1:
            return torch.zeros(rows, dtype=torch.long, device=scores.device)
        device = scores.device if generator is None else generator.device
        drawn = torch.randint(count, (rows,), generator=generator, device=device)
        return moved(drawn, scores.device)

    return rule


def require_temperature(temperature: float) -> None:
    """Raise InputError for one that is negative, infinite or NaN."""
    if not 0 <= temperature < float("inf"):
        raise InputError(f"expected a temperature of at least 0, received {temperature:g}")


def _total(top: Tensor) -> float:
    """Not finite where an entry is not; one call less for one row."""
    return float(top) if top.numel() == 1 else float(top.sum())


def _refuse_nan(top: Tensor, scores: Tensor) -> None:
    """`top` (B,) or (B, 1) propagates NaN from `scores` (B, K)."""
    if math.isnan(_total(top)) and bool(torch.isnan(top).any()):  # inf - inf is NaN, too
        row, k = torch.isnan(scores).nonzero()[0].tolist()
        raise InputError(
            f"the critic scored candidate {k} of row {row} as NaN (of {scores.shape[1]}): are its "
            "weights intact and the observations finite?"
        )
