"""The value of a reward expression: weighted sums, and ensembles of rewards of one image.

Several rewards that were trained apart are wrong apart: their least, or their mean less a multiple
of their variance, is harder to over-optimise than any of them (arXiv 2310.02743).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion.rewards.expression import Part, Term

# (n, B) -> (B,)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "min": lambda values: values.min(dim=0).values,
    "mean": lambda values: values.mean(dim=0),
    "var": lambda values: values.var(dim=0, correction=0),
    "std": lambda values: values.std(dim=0, correction=0),
}


def total(parts: Sequence[Part], value_of: Callable[[Term], Tensor]) -> Tensor:
    """sum_i weight_i * part_i: (B,); `value_of` gives a reward's values (B,), before its weight."""
    return torch.stack([part.weight * _value(part, value_of) for part in parts]).sum(dim=0)


def _value(part: Part, value_of: Callable[[Term], Tensor]) -> Tensor:
    if isinstance(part, Term):
        return value_of(part)
    arguments = torch.stack([total(argument, value_of) for argument in part.arguments])
    return FUNCTIONS[part.function](arguments)


def standardised(values: Tensor, group: Tensor) -> Tensor:
    """Each value less its group's mean, in the group's standard deviations (over n, not n - 1).

    values (B,) and group (B,) whole numbers -> (B,) float64. A group whose values agree to a
    millionth of their size has no spread that could be trusted: its values become 0.
    """
    values = values.double()
    _, index = group.unique(return_inverse=True)
    groups = int(index.max()) + 1 if len(index) else 0
    count = torch.bincount(index, minlength=groups).double()

    def sums(of: Tensor) -> Tensor:
        return torch.zeros(groups, dtype=torch.float64).index_add(0, index, of)

    centred = values - (sums(values) / count)[index]
    deviation = (sums(centred.square()) / count).sqrt()
    size = torch.zeros(groups, dtype=torch.float64)
    size = size.scatter_reduce(0, index, values.abs(), "amax")
    spread = deviation > 1e-6 * size
    scale = torch.where(spread, deviation, torch.ones_like(deviation))
    return torch.where(spread[index], centred / scale[index], torch.zeros_like(centred))
