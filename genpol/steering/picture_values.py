"""Values of unfinished pictures as steered chains ask them: one, or several composed by weights.

    V(x_t, prompt) = sum_i w_i V_i(x_t, prompt) / std_i

std_i is the standard deviation of the reward that V_i learnt, as its document says. So weights
compare importance rather than units, and they are chosen when pictures are drawn: nothing is
trained.

`PredictedReward` is a value without training: the reward of what a step takes for the finished
picture. It costs a decoded picture and a call of the reward for every chain that is valued, and is
what a learnt value has to be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion.chain import Condition
from diffusion.errors import InputError
from diffusion.pipelines import ImagePolicy
from diffusion.process import ReverseProcess
from diffusion.steered_chain import ChainValue
from diffusion.values.image_value import ImageValue, load_value
from diffusion.values.levels import levels

REWARD = "reward"  # a word for --value
Reward = Callable[[Tensor, list[str]], Tensor]  # images (M, 3, H, W) and prompts -> (M,)


class PredictedReward:
    """The reward of the picture that the last step took for the finished one.

    It needs no training. Each selection decodes a picture and asks the reward for every chain.

    Args:
        policy: whose pictures.
        reward: that is asked.
        std: of the reward, where it is composed with values; 1 leaves its units.
    """

    def __init__(self, policy: ImagePolicy, reward: Reward, std: float = 1.0) -> None:
        self.policy, self.reward, self.std = policy, reward, std

    def require_fits(self, policy: ImagePolicy) -> None:
        """It fits every pipeline."""

    def of(self, prompts: Sequence[str], cond: Condition, process: ReverseProcess) -> ChainValue:
        """The value of chains of these prompts."""

        def value(x: Tensor, done: int, rows: Tensor, x0: Tensor | None) -> Tensor:
            picture = x if done == process.num_steps else x0
            if picture is None:
                raise InputError(
                    "--prune-at 1 is before the first step, where no picture is predicted yet: use "
                    "smaller shares with --value reward"
                )
            texts = [prompts[i] for i in rows.tolist()]
            return torch.as_tensor(self.reward(self.policy.decode(picture), texts)).to(x.device)

        return value


class Learnt:
    """An `ImageValue` beside its unit."""

    def __init__(self, value: ImageValue) -> None:
        self.value, self.std = value, value.about.std

    def require_fits(self, policy: ImagePolicy) -> None:
        """Raise InputError where it is of another pipeline."""
        self.value.require_fits(policy)

    def of(self, prompts: Sequence[str], cond: Condition, process: ReverseProcess) -> ChainValue:
        """The value of chains of these prompts."""
        text, level = self.value.text(cond), levels(process)

        def value(x: Tensor, done: int, rows: Tensor, x0: Tensor | None) -> Tensor:
            return self.value(x, float(level[done]), text[rows], x0)

        return value


class PictureValues:
    """Several values of one pipeline, composed.

    Args:
        values: at least one.
        weights: one each; negative to avoid what a value likes. None is 1 each.

    Raises:
        InputError: no values, or not one finite weight each.
    """

    def __init__(
        self,
        values: Sequence[ImageValue | PredictedReward],
        weights: Sequence[float] | None = None,
    ) -> None:
        weights = [1.0] * len(values) if weights is None else list(weights)
        if not values or len(values) != len(weights):
            raise InputError(
                f"expected one weight for each of {len(values)} values, received {len(weights)}: "
                "--value-weights has a number for each folder of --value"
            )
        if not all(math.isfinite(w) for w in weights) or not any(weights):
            raise InputError(f"expected finite weights that are not all 0, received {weights}")
        self.parts = [v if isinstance(v, PredictedReward) else Learnt(v) for v in values]
        self.weights = weights

    @property
    def unit(self) -> float:
        """What one of V is in the reward's own units; 1 where several are composed."""
        return self.parts[0].std / self.weights[0] if len(self.parts) == 1 else 1.0

    @property
    def asks_reward(self) -> bool:
        """Whether it asks the reward itself."""
        return any(isinstance(part, PredictedReward) for part in self.parts)

    def require_fits(self, policy: ImagePolicy) -> None:
        """Raise InputError where a value is of another pipeline."""
        for part in self.parts:
            part.require_fits(policy)

    def of(self, prompts: Sequence[str], cond: Condition, process: ReverseProcess) -> ChainValue:
        """The value of chains of these prompts (a row of `cond` each) in this process, in standard
        deviations of the reward."""
        asked = [
            (weight / part.std, part.of(prompts, cond, process))
            for part, weight in zip(self.parts, self.weights, strict=True)
            if weight
        ]

        def value(x: Tensor, done: int, rows: Tensor, x0: Tensor | None) -> Tensor:
            total = torch.zeros(len(x), device=x.device)
            for weight, one in asked:
                total += weight * one(x, done, rows, x0)
            return total

        return value


def load_values(
    folders: Sequence[str | Path],
    weights: Sequence[float],
    policy: ImagePolicy,
    reward: Reward | None = None,
) -> PictureValues:
    """The values in these folders, where the policy computes; without weights, 1 each.

    Args:
        folders: "reward" is `PredictedReward` of `reward`.
        weights: one each, or none.
        policy: that is steered.
        reward: as given to --reward.

    Raises:
        InputError: a folder holds no value, or there is not one weight each.
    """
    values: list[ImageValue | PredictedReward] = []
    for folder in folders:
        if str(folder) != REWARD:
            values.append(load_value(folder, policy.device))
        elif reward is None:
            raise InputError("--value reward asks the --reward about predicted pictures: add it")
        else:
            values.append(PredictedReward(policy, reward))
    return PictureValues(values, list(weights) or None)
