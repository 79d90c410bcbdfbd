"""Values of unfinished pictures as steered chains ask them: one, or several composed by weights.

    V(x_t, prompt) = sum_i w_i V_i(x_t, prompt) / std_i

std_i is the standard deviation of the reward that V_i learnt, as its document says. So weights
compare importance rather than units, and they are chosen when pictures are drawn: nothing is
trained. The same holds for the rewards themselves, so the frontier of weights can be compared with
one that was trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion.chain import Condition
from diffusion.errors import InputError
from diffusion.pipelines import ImagePolicy
from diffusion.process import ReverseProcess
from diffusion.values.image_value import ImageValue, load_value
from diffusion.values.levels import levels


class PictureValues:
    """Several values of one pipeline, composed.

    Args:
        values: at least one.
        weights: one each; negative to avoid what a value likes. None is 1 each.

    Raises:
        InputError: no values, or not one finite weight each.
    """

    def __init__(self, values: Sequence[ImageValue], weights: Sequence[float] | None = None):
        weights = [1.0] * len(values) if weights is None else list(weights)
        if not values or len(values) != len(weights):
            raise InputError(
                f"expected one weight for each of {len(values)} values, received {len(weights)}: "
                "--value-weights has a number for each folder of --value"
            )
        if not all(math.isfinite(w) for w in weights) or not any(weights):
            raise InputError(f"expected finite weights that are not all 0, received {weights}")
        self.values, self.weights = list(values), weights

    @property
    def unit(self) -> float:
        """What one of V is in the reward's own units; 1 where several are composed."""
        if len(self.values) > 1:
            return 1.0
        return self.values[0].about.std / self.weights[0]

    def require_fits(self, policy: ImagePolicy) -> None:
        """Raise InputError where a value is of another pipeline."""
        for value in self.values:
            value.require_fits(policy)

    def of(self, cond: Condition, process: ReverseProcess) -> ValuesOfChains:
        """The value of chains of these prompts (a row of `cond` each) in this process."""
        return ValuesOfChains(self, [v.text(cond) for v in self.values], levels(process))


class ValuesOfChains:
    """A `ChainValue`: what the chains of some prompts are worth, in standard deviations of the
    reward. `PictureValues.of` makes it."""

    def __init__(self, values: PictureValues, texts: list[Tensor], level: Tensor) -> None:
        self.values, self.texts, self.level = values, texts, level

    def __call__(self, x: Tensor, done: int, rows: Tensor, x0: Tensor | None) -> Tensor:
        level = float(self.level[done])
        total = torch.zeros(len(x), device=x.device)
        for value, weight, text in zip(
            self.values.values, self.values.weights, self.texts, strict=True
        ):
            if weight:
                found = value(x, level, text[rows], x0)
                total += weight / value.about.std * found
        return total


def load_values(
    folders: Sequence[str | Path],
    weights: Sequence[float],
    device: str | torch.device,
) -> PictureValues:
    """The values in these folders, on `device`; without weights, 1 each.

    Raises:
        InputError: a folder holds no value, or there is not one weight each.
    """
    return PictureValues([load_value(f, device) for f in folders], list(weights) or None)
