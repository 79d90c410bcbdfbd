"""`LoopSnapshot`: everything that a loop goes on from, and its form in a checkpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    field_validator,
)
from torch import Tensor

from offline.learning.running_episodes import Observed, Running


@dataclass(frozen=True)
class LoopSnapshot:
    """What `Loop.snapshot` returns and `Loop.restore` takes.

    The states of agent, replay and imagination may hold views: write them, or copy them, before
    the loop goes on.
    """

    agent: dict[str, Any]
    """Its `state_dict`."""
    replay: dict[str, Any]
    """Of `ReplaySnapshot.tree`."""
    imagination: dict[str, Any] | None
    """Its `state_dict`; None without one."""
    statistics: dict[str, Any] | None
    """State of those that follow the replay; None where they do not."""
    counts: list[int]
    """Environment steps, critic updates, episodes and successes."""
    learnt: int
    """Updates made without an environment step."""
    started: int
    """Episodes begun."""
    due: list[float]
    """Fractions of a critic update and of a policy update that are owed."""
    generators: list[Tensor]
    """States of those that act, draw batches and learn."""
    sums: dict[str, tuple[Tensor | float, int]]
    """Of each metric since the last logged row: the sum and how many."""
    imagined: dict[str, float]
    """The imagination's numbers since then."""
    ended: list[tuple[float, bool, int]]
    """Return, success and length of each episode that ended since then."""
    obs: Observed
    """What the environments show, per key (N, ...); empty before the first step."""
    running: list[Running]
    """The episode that each environment is in; empty before the first step."""

    def tree(self) -> dict[str, Any]:
        """As tensors, numbers, lists and dicts with string keys."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {
            "sums": {key: [total, count] for key, (total, count) in self.sums.items()},
            "ended": [list(entry) for entry in self.ended],
            "obs": {key: torch.from_numpy(values) for key, values in self.obs.items()},
            "running": [
                {
                    "seed": episode.seed,
                    "actions": _stacked(episode.actions),
                    "queue": _stacked(episode.queue),
                    "returned": episode.returned,
                }
                for episode in self.running
            ],
        }

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> LoopSnapshot:
        """What `tree` returned; older runs have no imagination, statistics and `learnt`.

        Raises:
            ValueError: an entry is missing, or another kind of thing.
        """
        plain = _Tree.model_validate(dict(tree))
        return cls(
            agent=plain.agent,
            replay=plain.replay,
            imagination=plain.imagination,
            statistics=plain.statistics,
            counts=plain.counts,
            learnt=plain.learnt,
            started=plain.started,
            due=plain.due,
            generators=plain.generators,
            sums={key: (total, count) for key, (total, count) in plain.sums.items()},
            imagined=plain.imagined,
            ended=[(returned, success, steps) for returned, success, steps in plain.ended],
            obs={key: values.numpy() for key, values in plain.obs.items()},
            running=[
                Running(
                    saved.seed,
                    list(saved.actions.numpy()),
                    deque(saved.queue.numpy()),
                    saved.returned,
                )
                for saved in plain.running
            ],
        )


class _Entries(BaseModel):
    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)


class _RunningTree(_Entries):
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    actions: Tensor
    queue: Tensor
    returned: FiniteFloat

    @field_validator("actions", "queue")
    @classmethod
    def _of_actions(cls, actions: Tensor) -> Tensor:
        if actions.ndim != 2 or not torch.isfinite(actions).all():
            raise ValueError("expected finite actions (T, A)")
        return actions


class _Tree(_Entries):
    """What kind of thing each entry of the tree is."""

    agent: dict[str, Any]
    replay: dict[str, Any]
    imagination: dict[str, Any] | None = None
    statistics: dict[str, Any] | None = None
    counts: Annotated[list[NonNegativeInt], Field(min_length=4, max_length=4)]
    learnt: NonNegativeInt = 0
    started: NonNegativeInt
    due: Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]
    generators: Annotated[list[Tensor], Field(min_length=3, max_length=3)]
    sums: dict[str, Annotated[list[Any], Field(min_length=2, max_length=2)]]
    imagined: dict[str, float] = {}
    ended: list[Annotated[list[Any], Field(min_length=3, max_length=3)]]
    obs: dict[str, Tensor]
    running: list[_RunningTree]

    @field_validator("sums")
    @classmethod
    def _of_numbers(cls, sums: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, (total, count) in sums.items():
            number = isinstance(total, float) or isinstance(total, Tensor) and total.numel() == 1
            if not number or type(count) is not int or count < 1:
                raise ValueError(f'expected a sum and a count of "{key}"')
        return sums

    @field_validator("ended")
    @classmethod
    def _of_episodes(cls, ended: list[list[Any]]) -> list[list[Any]]:
        if any([type(item) for item in entry] != [float, bool, int] for entry in ended):
            raise ValueError("expected a return, a success and a length of each episode")
        return ended


def _stacked(actions: Iterable[np.ndarray]) -> Tensor:
    """(T, A), also of none."""
    rows = list(actions)
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, 0)
