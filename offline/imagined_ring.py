"""`ImaginedRing`: the newest imagined transitions, to be drawn beside real ones.

Shape legend: N rows, D state dimensions, H action chunk, A action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from offline.batch import IMAGINED, Batch
from offline.errors import InputError
from offline.world_model import StateLayout


class ImaginedRing:
    """The newest `capacity` transitions, each equally likely to be drawn.

    No one knows how an imagined episode goes on, so `mc_return` and `success` are NaN, and nothing
    may be cached by `key`, which is `IMAGINED`.

    Args:
        capacity: transitions kept; the oldest are overwritten.
        layout: of the flat states.
        chunk: H.
        action_dim: A.
    """

    def __init__(self, capacity: int, layout: StateLayout, chunk: int, action_dim: int) -> None:
        self.capacity, self.layout = capacity, layout
        # Zeros take no memory until they are written.
        self._rows = {
            "state": torch.zeros(capacity, layout.dim),
            "act": torch.zeros(capacity, chunk, action_dim),
            "reward": torch.zeros(capacity),
            "next_state": torch.zeros(capacity, layout.dim),
            "discount": torch.zeros(capacity),
        }
        self._head = self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(
        self, state: Tensor, act: Tensor, reward: Tensor, next_state: Tensor, discount: Tensor
    ) -> None:
        """Add (N, D), (N, H, A), (N,), (N, D), (N,); of more than fit, the last are kept."""
        added = {
            "state": state, "act": act, "reward": reward, "next_state": next_state,
            "discount": discount,
        }  # fmt: skip
        count = min(len(state), self.capacity)
        slots = (self._head + torch.arange(count)) % self.capacity
        for name, values in added.items():
            self._rows[name][slots] = values[len(state) - count :].to(self._rows[name])
        self._head = (self._head + count) % self.capacity
        self._count = min(self._count + count, self.capacity)

    def sample(self, batch_size: int, generator: Generator | None = None) -> Batch:
        """Draw uniformly with replacement.

        Raises:
            InputError: nothing has been imagined yet.
        """
        if not self._count:
            raise InputError("nothing has been imagined yet: has the world model seen any data?")
        slot = torch.randint(self._count, (batch_size,), generator=generator)
        drawn = {name: values[slot] for name, values in self._rows.items()}
        unknown = torch.full((batch_size,), float("nan"))
        return Batch(
            obs=self.layout.split(drawn["state"]),
            act=drawn["act"],
            reward=drawn["reward"],
            next_obs=self.layout.split(drawn["next_state"]),
            discount=drawn["discount"],
            mc_return=unknown,
            success=unknown.clone(),
            key=torch.full((batch_size,), IMAGINED),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything held. The tensors are views: write them, or copy them, before adding."""
        return {
            "settings": self._settings(),
            "rows": {name: values[: self._count] for name, values in self._rows.items()},
            "head": self._head,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned.

        Raises:
            InputError: it is the state of a ring with other settings.
        """
        for name, here in self._settings().items():
            if (saved := state["settings"].get(name)) != here:
                raise InputError(
                    f"what was imagined was saved with {name} {saved}, this run has {here}: resume "
                    "with the settings of the run that saved it"
                )
        for name, values in state["rows"].items():
            self._rows[name][: len(values)] = values
        self._count, self._head = len(state["rows"]["reward"]), state["head"]

    def _settings(self) -> dict[str, Any]:
        return {
            "imagined_capacity": self.capacity,
            "action_chunk": list(self._rows["act"].shape[1:]),
            "observations": dict(self.layout.sizes),
        }
