"""Stopping a run whose evaluated reward falls, and keeping the weights of its best evaluation.

`--stop-when "gold falls"` watches one evaluated reward. Evaluations have the same prompts and noise
every time, so two of them are compared prompt by prompt:

    fall      mean over prompts of (reward at the best evaluation - reward now)
    it fell   fall > its standard error

The best evaluation is the one with the highest mean, the untouched pipeline's included. The run
stops once the reward has fallen at `--stop-patience` evaluations in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt
from torch import Tensor

from diffusion.errors import InputError, did_you_mean, shown

TRAINED = "reward"  # the name of the training reward among those evaluated
ALSO = {"heldout": TRAINED, "held-out": TRAINED}
WEIGHTS = "best."  # begins the names of the best weights in a checkpoint


def watched(condition: str, names: Sequence[str]) -> str:
    """The evaluated reward that "NAME falls" speaks of.

    Args:
        condition: what --stop-when says.
        names: the rewards that are evaluated.

    Raises:
        InputError: another sentence, or a reward that is not evaluated.
    """
    if not names:
        raise InputError(
            f'--stop-when "{shown(condition)}" watches a reward, and none is evaluated: pass '
            "--reward or --gold-reward"
        )
    words = condition.split()
    if len(words) != 2 or words[1] != "falls":
        raise InputError(
            f'--stop-when "{shown(condition)}": expected a reward\'s name and "falls", such as '
            f'"{names[-1]} falls"'
        )
    name = ALSO.get(words[0], words[0])
    if name not in names:
        raise InputError(
            f'--stop-when: "{shown(words[0])}" is not evaluated.{did_you_mean(name, names)} '
            f"Evaluated are {', '.join(names)}; --gold-reward adds others"
        )
    return name


class _State(BaseModel):
    model_config = ConfigDict(strict=True)

    epoch: NonNegativeInt
    seen: NonNegativeInt
    falls: NonNegativeInt
    values: list[FiniteFloat]


class Watch:
    """The best evaluation so far of one reward, its weights, and how often it has fallen since.

    Args:
        name: of the reward.
        patience: falls in a row after which to stop.

    Attributes:
        epoch: of the best evaluation.
        seen: epoch of the last one.
        falls: evaluations in a row, up to the last, in which the reward has fallen.
        values: (n,) rewards of the best evaluation.
        weights: those that were evaluated then, by name.
    """

    def __init__(self, name: str, patience: int) -> None:
        self.name, self.patience = name, patience
        self.epoch = self.seen = self.falls = 0
        self.values = torch.zeros(0, dtype=torch.float64)
        self.weights: dict[str, Tensor] = {}

    @property
    def stopped(self) -> bool:
        return self.falls >= self.patience

    def see(
        self, epoch: int, rewards: Mapping[str, Tensor], weights: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """Take in an evaluation and return what to log. Weights are copied where it is the best.

        Evaluations of more prompts begin with the same ones: those that both have are compared.
        """
        now = rewards[self.name].detach().double().cpu()
        count = min(len(now), len(self.values)) if self.weights else len(now)
        fall, error = 0.0, 0.0
        if self.weights:
            apart = self.values[:count] - now[:count]
            fall, error = float(apart.mean()), float(apart.std() / count**0.5)
        if not self.weights or fall < 0:
            self.epoch, self.values, self.falls = epoch, now.clone(), 0
            self.weights = {name: value.detach().clone() for name, value in weights.items()}
        else:
            self.falls = self.falls + 1 if fall > error else 0
        self.seen = epoch
        return {
            "stop/best": float(self.values[:count].mean()),
            "stop/best_epoch": float(self.epoch),
            "stop/fall": max(fall, 0.0),
            "stop/fall_error": error,
            "stop/falls": float(self.falls),
        }

    def reason(self) -> str:
        """Why it has stopped, in one clause."""
        times = "1 evaluation" if self.falls == 1 else f"{self.falls} evaluations in a row"
        return (
            f"{self.name} was below its best, {float(self.values.mean()):.4f} at epoch "
            f"{self.epoch}, by more than the standard error at {times}"
        )

    # -- state ------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a resumed run needs: tensors, and JSON-able values."""
        values = {"epoch": self.epoch, "seen": self.seen, "falls": self.falls}
        tensors = {f"{WEIGHTS}{name}": value for name, value in self.weights.items()}
        return tensors, values | {"values": self.values.tolist()}

    def load_state(self, tensors: Mapping[str, Tensor], values: Any) -> None:
        """Go on from `state()`; raises ValueError where it is not one."""
        state = _State.model_validate(values)
        self.epoch, self.seen, self.falls = state.epoch, state.seen, state.falls
        self.values = torch.tensor(state.values, dtype=torch.float64)
        self.weights = {
            name.removeprefix(WEIGHTS): value
            for name, value in tensors.items()
            if name.startswith(WEIGHTS)
        }
