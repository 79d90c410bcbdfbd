"""Long chunks by a critic of short ones: the chunk's windows are scored one by one and summed.

A policy of 50 actions and a critic of H = 8 meet in

    Q(s, a_0..a_49) = sum_j  c_j gamma^(t_j)  Q(s, a_{t_j} .. a_{t_j + H - 1})

with t_j = 0, H, 2H, ... The last window ends with the chunk and may overlap the one before; c_j is
the share of its actions that no window before it has, so that the sum of c_j is L / H. Of 50
actions the windows begin at 0, 8, .., 40 and 42, and the last one counts 2/8.

Up to a constant of the state this is what the chunk gains over the policy of the data, if the
state stayed as it is: by the performance difference lemma (Kakade and Langford 2002) the gain is
the discounted sum of the advantages of what is executed, each in its own state. The states under
way are not known when a chunk is chosen, so all windows are scored in the state that the robot is
in. Their order is worth the less, the farther the robot moves within a chunk.

Shape legend: B rows, K candidates, L actions of the chunk, H of the critic's, A action dimension,
E critic ensemble, W windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic

import torch
from torch import Tensor

from genpol.steering.compose import Composed
from offline.draws import moved
from offline.errors import SpecError
from offline.types import Critic, Features, Obs


class Windows(Generic[Features]):
    """A critic of chunks of H actions as a critic of longer ones.

    The heads are summed one by one: head e of the result is the sum of head e over the windows, so
    a pessimistic minimum is taken over what each head thinks of the whole chunk. Values, and with
    them a temperature, a margin and a gate, are in units of the sum.

    Args:
        critic: scores chunks of `critic.spec.chunk` actions.
        chunk: L, at least as many.
        discount: gamma of an environment step; default what the critic's `meta` says it was
            trained with, 1 where that says nothing.

    Raises:
        SpecError: a chunk shorter than the critic's.
    """

    def __init__(self, critic: Critic[Features], chunk: int, discount: float | None = None) -> None:
        self.critic, size = critic, critic.spec.chunk
        if chunk < size:
            raise SpecError(
                f"the windows of a chunk of {chunk} actions cannot be scored: the critic was "
                f"trained on H={size}. Take a policy of longer chunks, or train the critic with "
                f"--action-chunk {chunk}"
            )
        self.spec = critic.spec.with_chunk(chunk)
        if discount is None:
            meta = getattr(critic, "meta", None)
            said = meta.get("discount", 1.0) if isinstance(meta, Mapping) else 1.0
            discount = float(said)
        self.discount = discount
        self.starts = [*range(0, chunk - size, size), chunk - size]
        """(W,) where the windows begin."""
        ends = [0] + [start + size for start in self.starts]
        shares = [(end - before) / size for before, end in zip(ends[:-1], ends[1:], strict=True)]
        self.weights = [
            share * discount**start for share, start in zip(shares, self.starts, strict=True)
        ]
        """(W,) what each counts."""
        self._index = torch.tensor(self.starts)[:, None] + torch.arange(size)
        self._weights = torch.tensor(self.weights)

    @property
    def obs_shapes(self) -> Any:
        """What the critic observes; None where it does not say."""
        return getattr(self.critic, "obs_shapes", None)

    def encode(self, obs: Obs) -> Features:
        """The critic's features of B observations."""
        return self.critic.encode(obs)

    def score(self, features: Features, act: Tensor) -> Tensor:
        """Features of B observations and (B, K, L, A) -> (E, B, K).

        Raises:
            SpecError: another chunk length.
        """
        if act.shape[2] != self.spec.chunk:
            raise SpecError(
                f"chunks of {self.spec.chunk} actions are scored by their windows, received "
                f"{act.shape[2]}"
            )
        if self._index.device != act.device:
            self._index = moved(self._index, act.device)
        windows = act[:, :, self._index].flatten(1, 2)  # (B, K W, H, A)
        q = self.critic.score(features, windows).unflatten(-1, (act.shape[1], -1))
        if self._weights.device != q.device:
            self._weights = moved(self._weights, q.device)
        return (q * self._weights).sum(-1)

    def __call__(self, obs: Obs, act: Tensor) -> Tensor:
        """(B, K, L, A), normalised by `spec` -> (E, B, K)."""
        return self.score(self.encode(obs), act)


def windowed(critic: Critic[Any], chunk: int) -> Critic[Any]:
    """The critic for chunks of this length: itself where that is its own.

    Of a composed critic every part is summed by itself, with its own discount, before scores are
    standardised.

    Raises:
        SpecError: a chunk shorter than the critic's.
    """
    if critic.spec.chunk == chunk:
        return critic
    if isinstance(critic, Composed):
        parts = [Windows(part, chunk) for part in critic.critics]
        return Composed(parts, critic.weights, critic.standardize)
    return Windows(critic, chunk)
