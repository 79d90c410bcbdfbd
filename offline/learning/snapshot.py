"""`LoopSnapshot`: everything that a loop goes on from, and its form in a checkpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
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
        """What `tree` returned; older runs have no imagination, statistics and `learnt`."""
        return cls(
            **{key: tree[key] for key in ("agent", "replay", "counts", "started")},
            imagination=tree.get("imagination"),
            statistics=tree.get("statistics"),
            learnt=tree.get("learnt", 0),
            due=list(tree["due"]),
            generators=list(tree["generators"]),
            sums={key: (total, count) for key, (total, count) in tree["sums"].items()},
            imagined=dict(tree.get("imagined", {})),
            ended=[(entry[0], entry[1], entry[2]) for entry in tree["ended"]],
            obs={key: values.numpy() for key, values in tree["obs"].items()},
            running=[
                Running(
                    saved["seed"],
                    list(saved["actions"].numpy()),
                    deque(saved["queue"].numpy()),
                    saved["returned"],
                )
                for saved in tree["running"]
            ],
        )


def _stacked(actions: Iterable[np.ndarray]) -> Tensor:
    """(T, A), also of none."""
    rows = list(actions)
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, 0)
