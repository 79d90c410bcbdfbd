"""A KL target: the constant that holds a policy to its reference is adapted until the KL is met.

The proportional controller of Ziegler et al. 2019 (arXiv 1909.08593, section 2.2), once an epoch:

    e = clip(KL / target - 1, -0.2, 0.2)        beta <- beta (1 + gain e)

KL is `kl/forward`, in nats per image (`forward_kl.py`), so that a target means the same for every
objective and sampler. What plays the part of beta is said by the objective's `held_by`, the name of
one of its fields: the reward scale of prdp, rtb and prdp-forward, the weight of the KL in grpo and
nft, and in awm that of the distance to the average of the weights, which slows the policy down and
does not bound how far it goes.

Ziegler et al. have gain 0.1 and thousands of updates; an epoch here is one, so the gain is 1 by
default: at most a fifth an epoch. Beta stays within a factor of 1,000 of where it started.
"""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from diffusion.config import FinetuneConfig
from diffusion.errors import InputError

ERROR_LIMIT = 0.2
FURTHEST = 1000.0


@dataclass(frozen=True)
class KLTarget:
    """target: nats per image. gain: of the controller. start: the constant before training."""

    target: float
    gain: float
    start: float

    def adapted(self, objective: Any, kl: float) -> Any:
        """The objective for the next epoch, after one at whose start the policy was at `kl`."""
        error = min(max(kl / self.target - 1, -ERROR_LIMIT), ERROR_LIMIT)
        weight = weight_of(objective) * (1 + self.gain * error)
        return with_weight(
            objective, min(max(weight, self.start / FURTHEST), self.start * FURTHEST)
        )


def weight_of(objective: Any) -> float:
    """The constant that holds the policy to its reference."""
    return float(getattr(objective, objective.held_by))


def with_weight(objective: Any, weight: float) -> Any:
    """The objective with that constant; all else, memory included, stays."""
    return replace(objective, **{objective.held_by: weight})


def kl_target(config: FinetuneConfig, objective: Any) -> KLTarget | None:
    """The controller that a run asks for; None where there is no --kl-target.

    Raises:
        InputError: the objective has no constant to adapt, or it is 0.
    """
    if config.kl_target is None:
        return None
    name = getattr(objective, "held_by", None)
    if name is None or not is_dataclass(objective):
        raise InputError(
            f"--kl-target adapts the constant that holds the policy to its reference, and "
            f"{config.algorithm} has none; use prdp, rtb, prdp-forward, grpo, nft or awm, or give "
            'your objective, a dataclass, held_by = "FIELD"'
        )
    start = weight_of(objective)
    if not start > 0:
        raise InputError(
            "--kl-target multiplies the weight of the KL, which is 0; give it a start, such as "
            "--kl-weight 0.01"
        )
    return KLTarget(config.kl_target, config.kl_gain, start)
