"""What learning from a dataset does, whatever learns: read the two parts, take steps, average.

read_parts ──> Transitions to train on, Transitions held out
take_steps ──> update(step) ... update(step) ──> report(Row) every `log_every` steps
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from offline.data.dataset_config import DatasetConfig
from offline.data.episodes import Episodes
from offline.data.returns import RewardKind
from offline.data.training_data import training_spec, wanted_keys
from offline.data.transitions import Embed, Transitions
from offline.errors import InputError

Indices = Sequence[int] | np.ndarray


def read_parts(
    episodes: Episodes,
    config: DatasetConfig,
    train: Indices,
    held_out: Indices,
    *,
    reward: RewardKind,
    discount: float = 1.0,
    language: Embed | None = None,
) -> tuple[Transitions, Transitions | None]:
    """The chunks to learn from and those held out; None where `held_out` is empty.

    Held-out chunks are streamed beyond a quarter of `config.memory_gb`.

    Raises:
        InputError: an observation is unknown, or no episode of a part is long enough.
    """
    keys = wanted_keys(episodes, config.obs_keys, config.image_keys)
    spec = training_spec(episodes, config.scale, config.action_chunk)

    def read(indices: Indices, gigabytes: float) -> Transitions:
        return Transitions(
            episodes,
            config.action_chunk,
            spec=spec,
            discount=discount,
            reward=reward,
            indices=np.sort(indices),
            obs_keys=keys,
            language=language,
            memory_limit=int(gigabytes * 2**30),
        )

    data = read(train, config.memory_gb)
    return data, read(held_out, config.memory_gb / 4) if len(held_out) else None


def warn_unseen(train: Transitions, learner: str, warn: Callable[[str], None]) -> None:
    """Say so where episodes have instructions that the learner is not shown."""
    if len(train.instructions) > 1 and train.language is None:
        warn(
            f"the dataset has {len(train.instructions)} instructions, which this {learner} does "
            "not see: --language-model shipped shows it them"
        )


@dataclass(frozen=True)
class Row:
    """What is known every `log_every` steps and after the last one."""

    step: int
    """Gradient steps taken."""
    means: dict[str, float]
    """Of what `update` returned since the last row."""
    latest: Mapping[str, Tensor]
    """What `update` returned last."""
    seconds: float
    """Per step since the last row."""


def take_steps(
    steps: int,
    update: Callable[[int], Mapping[str, Tensor]],
    report: Callable[[Row], dict[str, float]],
    *,
    log_every: int,
    loss: str,
    learner: str,
    stop: Callable[[], bool] | None = None,
) -> tuple[int, dict[str, float]]:
    """Take gradient steps.

    Args:
        steps: how many.
        update: takes the step numbered from 0; returns metrics without gradients.
        report: turns a row into metrics, and logs them.
        log_every: steps between rows.
        loss: the metric that must stay finite.
        learner: what the error calls it.
        stop: asked before every step whether to leave.

    Returns:
        The steps taken, and what `report` returned last ({} when it was never called).

    Raises:
        InputError: the mean loss of a row is not finite.
    """
    sums: dict[str, Tensor] = {}
    count = step = 0
    metrics: dict[str, float] = {}
    since = time.perf_counter()
    while step < steps and not (stop and stop()):
        latest = update(step)
        sums = {key: sums.get(key, 0) + number for key, number in latest.items()}
        count, step = count + 1, step + 1
        if step % log_every == 0 or step == steps:
            means = {key: float(total) / count for key, total in sums.items()}
            if not math.isfinite(means[loss]):
                raise InputError(
                    f"{learner} diverged at step {step} (its loss is not finite): "
                    "try a smaller --lr"
                )
            metrics = report(Row(step, means, latest, (time.perf_counter() - since) / count))
            sums, count, since = {}, 0, time.perf_counter()
    return step, metrics


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON can hold them: None for what is not finite."""
    return {key: value if math.isfinite(value) else None for key, value in metrics.items()}
