"""Objectives by name, made from a run's settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusion.config import FinetuneConfig
from diffusion.errors import InputError, did_you_mean
from diffusion.objective import Objective
from diffusion.objectives.awm import AWM
from diffusion.objectives.ddpo import DDPO
from diffusion.objectives.dpo import DPO
from diffusion.objectives.grpo import GRPO
from diffusion.objectives.nft import NFT
from diffusion.objectives.prdp_forward import PRDPForward
from diffusion.objectives.rtb import RTB
from diffusion.prdp import PRDP
from diffusion.rewards.function import load_function


def _clip(c: FinetuneConfig) -> float | None:
    return c.clip if c.clipping else None


# A resolved configuration has no None where a number is needed.
OBJECTIVES: dict[str, Callable[[Any], Any]] = {
    "prdp": lambda c: PRDP(c.beta, _clip(c), c.unit, c.aggregate),
    "ddpo": lambda c: DDPO(_clip(c)),
    "grpo": lambda c: GRPO(_clip(c), c.kl_weight, c.normalise_ratio),
    "rtb": lambda c: RTB(c.beta, c.unit),
    "prdp-forward": lambda c: PRDPForward(c.beta, _clip(c), c.unit, c.loss_weight, c.draws),
    "nft": lambda c: NFT(c.mix, c.draws, kl=c.kl_weight or 0.0),
    "awm": lambda c: AWM(_clip(c), c.kl_weight, c.loss_weight, c.draws),
    "dpo": lambda c: DPO(c.beta, c.draws),
}


def make_objective(config: FinetuneConfig) -> Objective:
    """The objective that `config.algorithm` names; one of the user's own is made from `config`.

    Raises:
        InputError: a name that is neither known nor can be imported, or a constant out of range.
    """
    name = config.algorithm
    if ":" in name:
        return load_function(name, what="Objective")(config)
    if name not in OBJECTIVES:
        raise InputError(
            f'unknown objective "{name}".{did_you_mean(name, OBJECTIVES)} One of your own is '
            "module:name of a function of the configuration that returns an objective"
        )
    return OBJECTIVES[name](config)
