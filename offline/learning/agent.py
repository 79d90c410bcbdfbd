"""`Agent`: what the offline-to-online loop trains, whatever the method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Generator, Tensor

from offline.data.batch import Batch
from offline.spec import ActionSpec
from offline.types import Policy


class Agent(Protocol):
    """Learns from batches, acts through a `Policy`.

    For each environment step the loop makes `utd` calls of `update_critic`, each with a fresh
    batch, and then one of `update_policy` with the last of them (with utd < 1 both are made every
    1 / utd steps). Actions are chunks normalised by `spec`, each dimension in [-1, 1].
    """

    spec: ActionSpec

    def update_critic(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One gradient step of the critic and its target; scalars to log, detached."""

    def update_policy(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One gradient step of everything else; scalars to log, detached."""

    def acting(self) -> Policy:
        """Collects experience, so it explores. The same object every time; it follows the
        agent's weights."""

    def evaluating(self) -> Policy:
        """What is evaluated and deployed. The same object every time."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that training goes on from: a tree of dictionaries and lists with tensors,
        numbers, strings, booleans and None at its leaves."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned; training then goes on bit for bit."""

    def save(self, folder: Path) -> None:
        """Write what a user deploys: `value/` (a `ValueFunction`) and, where there is a policy of
        our own, `policy/` (loadable by `genpol.policies.load_policy`)."""
