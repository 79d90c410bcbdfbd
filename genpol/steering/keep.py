"""Rules that say which of K chains under way go on: values (N, K) -> indices (N, n).

`diffusion/steered_chain.py` asks them at its stages. They are the rules of `select.py` for more
than one: the best n are those that `argmax` would choose one after another, and n draws by the
value take `softmax` for each, but evenly spread.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from diffusion.steered_chain import Keep
from genpol.steering.select import argmax, require_temperature


def best() -> Keep:
    """The n chains with the highest value, in their order; of equals, the first."""
    one = argmax()

    def rule(now: Tensor, before: Tensor, count: int, generators: Sequence[Generator]) -> Tensor:
        chosen = one(now, None)[:, None]  # refuses NaN
        if count == 1:
            return chosen
        return (
            torch.sort(now, dim=-1, descending=True, stable=True).indices[:, :count].sort(-1).values
        )

    return rule


def resampled(temperature: float) -> Keep:
    """n draws of k ~ softmax((V_now - V_before)_k / temperature), systematic.

    A chain of weight w goes on floor(n w) or ceil(n w) times, n w on average (Douc and Cappé 2005,
    arXiv cs/0507025): where all weights are equal, every chain goes on once. One draw is `softmax`.
    The increment counts, because the selection before has drawn by the rest of the value already.

    Args:
        temperature: in the units of the value; 0 copies the chain whose value rose the most.

    Raises:
        InputError: a negative temperature; or NaN values, when called.
    """
    require_temperature(temperature)
    one = argmax()

    def rule(now: Tensor, before: Tensor, count: int, generators: Sequence[Generator]) -> Tensor:
        gain = (now - before).double()
        top = one(gain, None)[:, None]  # refuses NaN
        if temperature == 0:
            return top.expand(-1, count)
        weights = ((gain - gain.gather(1, top)) / temperature).softmax(-1)
        start = torch.tensor(
            [float(torch.rand((), generator=g, dtype=torch.float64)) for g in generators]
        )
        points = (start[:, None] + torch.arange(count)) / count
        drawn = torch.searchsorted(weights.cumsum(-1), points.to(weights), right=True)
        return drawn.clamp_max(now.shape[1] - 1)  # the sum may round to less than 1

    return rule
