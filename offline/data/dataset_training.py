"""What learning from a dataset does, whatever learns: read the two parts, take steps, average.

read_parts ──> Transitions to train on, Transitions held out
Steps.take ──> update(step) ... update(step) ──> report(Row) every `log_every` steps
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from offline.data.dataset_config import DatasetConfig
from offline.data.episodes import Episodes
from offline.data.mixed_transitions import Data, transitions_of
from offline.data.returns import RewardKind
from offline.data.training_data import training_spec, wanted_keys
from offline.data.transitions import Embed
from offline.errors import Diverged

Indices = Sequence[int] | np.ndarray
Log = Callable[[int, dict[str, float]], None]
CHECK_EVERY = 20  # steps between checks of the weights; NaN in them is in the next loss as well


def read_parts(
    episodes: Episodes,
    config: DatasetConfig,
    train: Indices,
    held_out: Indices,
    *,
    reward: RewardKind,
    discount: float = 1.0,
    language: Embed | None = None,
) -> tuple[Data, Data | None]:
    """The chunks to learn from and those held out; None where `held_out` is empty.

    Held-out chunks are streamed beyond a quarter of `config.memory_gb`.

    Raises:
        InputError: an observation is unknown, or no episode of a part is long enough.
    """
    keys = wanted_keys(episodes, config.obs_keys, config.image_keys)
    spec = training_spec(episodes, config.scale, config.action_chunk)

    def read(indices: Indices, gigabytes: float) -> Data:
        return transitions_of(
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


def joint_fingerprint(train: Data, held_out: Data | None) -> str:
    """Tells whether both parts of a dataset are what a run began with."""
    parts = [train.fingerprint] + ([] if held_out is None else [held_out.fingerprint])
    return "-".join(parts)


def set_stream(stream: Generator, state: Tensor) -> None:
    """Let a random stream go on. One that an earlier version drew from on a GPU cannot, and begins
    anew: all streams draw on the CPU."""
    if state.shape == stream.get_state().shape:
        stream.set_state(state)


def warn_unseen(train: Data, learner: str, warn: Callable[[str], None]) -> None:
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


class Learning(Protocol):
    """What learns from a dataset by gradient steps, and can be saved between two of them."""

    name: str
    """What an error calls it, such as "cloning"."""
    loss: str
    """The metric that it minimises."""
    fingerprint: str
    """Of the dataset's parts."""

    def update(self, step: int) -> Mapping[str, Tensor]:
        """Take the step numbered from 0; metrics without gradients."""

    def report(self, row: Row) -> dict[str, float]:
        """The metrics of a row."""

    def final(self) -> dict[str, float]:
        """What is only measured at the end."""

    def weights(self) -> Sequence[Tensor]:
        """What must stay finite."""

    def state_dict(self) -> dict[str, Any]:
        """All that the steps to come depend on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned."""


class Steps:
    """Gradient steps of a learning, which may be taken in several sittings.

    Args:
        learning: what takes them.
        total: how many in all.
        log_every: steps between rows.
    """

    def __init__(self, learning: Learning, total: int, *, log_every: int) -> None:
        self.learning, self.total, self.log_every = learning, total, log_every
        self.step = 0
        """Steps taken."""
        self.metrics: dict[str, float] = {}
        """Of the last row."""
        self._sums: dict[str, Tensor | float] = {}
        self._count, self._seconds = 0, 0.0

    @property
    def complete(self) -> bool:
        """Whether all steps are taken."""
        return self.step >= self.total

    def take(
        self,
        log: Log | None = None,
        *,
        stop: Callable[[], bool] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        """Take steps to the end.

        Args:
            log: called with every row's step and metrics, but for the last row, which waits for
                `finish`.
            stop: asked before every step whether to leave.
            after: called after every step and its row.

        Raises:
            Diverged: the loss or the weights are not finite any more.
        """
        while not self.complete and not (stop and stop()):
            began = time.perf_counter()
            latest = self.learning.update(self.step)
            self._sums = {key: self._sums.get(key, 0) + number for key, number in latest.items()}
            self.step, self._count = self.step + 1, self._count + 1
            row = self.step % self.log_every == 0 or self.complete
            loss = latest[self.learning.loss]
            if row or loss.is_cpu or self.step % CHECK_EVERY == 0:  # elsewhere, to read is to wait
                self._require_finite("loss", float(loss))
            if row or self.step % CHECK_EVERY == 0:
                self.check()
            self._seconds += time.perf_counter() - began
            if row:
                self._row(latest, log)
            if after:
                after()

    def _row(self, latest: Mapping[str, Tensor], log: Log | None) -> None:
        means = {key: float(total) / self._count for key, total in self._sums.items()}
        self.metrics = self.learning.report(
            Row(self.step, means, latest, self._seconds / self._count)
        )
        self._sums, self._count, self._seconds = {}, 0, 0.0
        if log and not self.complete:
            log(self.step, self.metrics)

    def finish(self, log: Log | None = None) -> None:
        """Measure what is left to measure, and log the last row."""
        self.metrics = self.metrics | self.learning.final()
        if log:
            log(self.step, self.metrics)

    def check(self) -> None:
        """Check the weights; a hundredth of the time of a step.

        Raises:
            Diverged: they are not finite.
        """
        sizes = torch._foreach_norm([weight.detach() for weight in self.learning.weights()])
        self._require_finite("weights", float(torch.stack(sizes).sum()))

    def _require_finite(self, what: str, size: float) -> None:
        if not math.isfinite(size):
            raise Diverged(
                f"{self.learning.name} diverged at step {self.step} (its {what} became {size}): "
                "try a smaller --lr"
            )

    def state_dict(self) -> dict[str, Any]:
        """All that a later sitting goes on from."""
        return {
            "learning": self.learning.state_dict(),
            "step": self.step,
            "metrics": self.metrics,
            # As numbers, which tell NaN apart from weights that are NaN.
            "sums": {key: float(total) for key, total in self._sums.items()},
            "count": self._count,
            "seconds": self._seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned."""
        self.learning.load_state_dict(state["learning"])
        self.step, self.metrics = state["step"], dict(state["metrics"])
        self._sums, self._count = dict(state["sums"]), state["count"]
        self._seconds = state["seconds"]


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON can hold them: None for what is not finite."""
    return {key: value if math.isfinite(value) else None for key, value in metrics.items()}
