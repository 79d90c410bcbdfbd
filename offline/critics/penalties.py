"""Penalties that a configuration adds to a critic's loss."""

from __future__ import annotations

from functools import reduce

from torch import Generator, Tensor

from offline.critics.critic_config import CriticConfig
from offline.critics.diversity import diversity
from offline.critics.lipschitz import adversarial, watch
from offline.critics.td import Penalty
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.option_check import require


def penalties(config: CriticConfig) -> Penalty | None:
    """The adversarial penalty, the heads' diversity, both, or None.

    With any `lipschitz` there is something, as the empirical constant is then observed. The
    spectral bound itself is a matter of the critic's architecture, `lipschitz_bound(config)`.

    Raises:
        InputError: diversity of a single head.
    """
    parts: list[Penalty] = []
    if config.lipschitz == "adversarial" and config.lipschitz_weight > 0:
        parts.append(
            adversarial(config.lipschitz_weight, config.lipschitz_radius, config.lipschitz_attack)
        )
    if config.lipschitz != "none":
        parts.append(watch)
    if config.value_diversity > 0:
        require(
            config,
            "value_ensemble",
            config.value_ensemble > 1,
            "at least 2 with --value-diversity, which is between heads",
        )
        parts.append(diversity(config.value_diversity))
    return reduce(both, parts) if parts else None


def lipschitz_bound(config: CriticConfig) -> float | None:
    """The `lipschitz_bound` of a `ValueFunction` made by `config`."""
    return config.lipschitz_bound if config.lipschitz == "spectral" else None


def both(one: Penalty, other: Penalty) -> Penalty:
    """The sum of two penalties, with the metrics of both."""

    def penalty(value: ValueFunction, batch: Batch, generator: Generator) -> tuple[Tensor, dict]:
        a, metrics = one(value, batch, generator)
        b, more = other(value, batch, generator)
        return a + b, metrics | more

    return penalty
