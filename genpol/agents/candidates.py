"""`CandidateCache`: base candidates of each transition's next state, drawn now and then.

A target chooses among N samples of the base policy and their edits. The base policy changes slowly
and its samples depend on the state alone, so those drawn for a transition serve again the next
time it comes up; edits and scores are always fresh. With a frozen base policy nothing is lost but
variety.

A transition is found by its key (`offline.data.batch.Batch.key`), in a row for each transition of
the dataset and one for each slot of the replay. The key is kept too: when the replay overwrites a
slot, the new transition's key differs, and what was cached counts no longer.

Shape legend: R rows, B batch, M drawn, n candidates, H action chunk, A action dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from genpol.policies.policy import ChunkPolicy
from offline.draws import moved
from offline.errors import InputError
from offline.types import Obs

Draw = Callable[[Obs], Tensor]  # M observations -> (M, n, H, A)


class CandidateCache:
    """See the top of the file.

    Args:
        offline_rows: transitions of the dataset; their keys are 0..offline_rows - 1.
        replay_slots: slots of the replay; keys are offline_rows + slot + generation * slots.
        n: candidates for each state.
        chunk: H.
        dim: A.
        max_age: updates after which they are drawn again; None keeps them for good.
        memory: type that they are kept in. float16 resolves 1/2000 of an action's range.

    Raises:
        InputError: a negative size or age, or no rows at all.
    """

    def __init__(
        self,
        offline_rows: int,
        replay_slots: int,
        n: int,
        chunk: int,
        dim: int,
        max_age: int | None,
        memory: Literal["float16", "float32"] = "float16",
    ) -> None:
        if min(offline_rows, replay_slots, max_age or 0) < 0 or not offline_rows + replay_slots:
            raise InputError(
                f"a cache needs rows, and an age of at least 0: received {offline_rows} offline "
                f"rows, {replay_slots} slots and age {max_age}"
            )
        self.offline_rows, self.replay_slots, self.max_age = offline_rows, replay_slots, max_age
        rows = offline_rows + replay_slots
        dtype = {"float16": torch.float16, "float32": torch.float32}[memory]
        self._act = torch.zeros(rows, n, chunk, dim, dtype=dtype)  # the system gives it when used
        self._key = torch.full((rows,), -1, dtype=torch.long)
        self._drawn_at = torch.zeros(rows, dtype=torch.long)
        self._served = self._hits = self._age = 0

    def candidates(self, keys: Tensor | None, next_obs: Obs, draw: Draw, now: int) -> Tensor:
        """Base candidates of each of B next states, drawn where there are none fresh enough.

        Args:
            keys: (B,) of the transitions; -1, or None for all, is never cached.
            next_obs: B observations.
            draw: called once with those observations that need drawing, if any.
            now: updates made so far.

        Returns:
            (B, n, H, A) float32, rounded to what the cache keeps.
        """
        like = next(iter(next_obs.values()))
        count = len(like)
        keys = torch.full((count,), -1) if keys is None else keys.cpu()
        known, rows = keys >= 0, self._rows(keys)
        hit = known & (self._key[rows] == keys)
        age = now - self._drawn_at[rows]
        if self.max_age is not None:
            hit &= age <= self.max_age
        self._served += count
        self._hits += int(hit.sum())
        self._age += int(age[hit].sum())
        found = self._act[rows].float()
        if not hit.all():
            missing = (~hit).nonzero()[:, 0]
            # The same transition twice in a batch is drawn once; unknown ones are all different.
            identity = torch.where(known, keys, -1 - torch.arange(count))[missing]
            _, which = torch.unique(identity, return_inverse=True)
            first = torch.full((int(which.max()) + 1,), len(missing))
            first = first.scatter_reduce(0, which, torch.arange(len(missing)), "amin")
            source = missing[first]
            asked = moved(source, like.device)
            act = draw({key: value[asked] for key, value in next_obs.items()})
            act = act.to("cpu", self._act.dtype)
            found[missing] = act[which].float()
            kept = known[source]
            self._act[rows[source[kept]]] = act[kept]
            self._key[rows[source[kept]]] = keys[source[kept]]
            self._drawn_at[rows[source[kept]]] = now
        return moved(found, like.device)

    def metrics(self) -> dict[str, float]:
        """cache/hit_rate of all served since the last call, cache/age in updates of the hits."""
        out = {
            "cache/hit_rate": self._hits / max(self._served, 1),
            "cache/age": self._age / max(self._hits, 1),
        }
        self._served = self._hits = self._age = 0
        return out

    def reset(self) -> None:
        """Forget everything: the base policy is another one now."""
        self._key.fill_(-1)
        self._served = self._hits = self._age = 0

    def state_dict(self) -> dict[str, Any]:
        """The rows in use."""
        rows = (self._key >= 0).nonzero()[:, 0]
        return {
            "rows": rows,
            "act": self._act[rows],
            "key": self._key[rows],
            "drawn_at": self._drawn_at[rows],
            "counts": [self._served, self._hits, self._age],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned; then it goes on bit for bit."""
        self.reset()
        rows = state["rows"]
        self._act[rows] = state["act"]
        self._key[rows] = state["key"]
        self._drawn_at[rows] = state["drawn_at"]
        self._served, self._hits, self._age = state["counts"]

    def _rows(self, keys: Tensor) -> Tensor:
        """(B,) where each key's candidates are kept; 0 for unknown ones."""
        slots = (keys - self.offline_rows) % max(self.replay_slots, 1)
        rows = torch.where(keys < self.offline_rows, keys, self.offline_rows + slots)
        return rows.clamp(min=0)


class Draft:
    """A policy's proposals in fewer steps, in lower precision, or both; itself a `Policy`.

    Args:
        policy: whose weights are followed.
        steps: of its chain; None is all of them. A flow takes Euler steps, a diffusion policy
            DDIM's, and there they have to divide its T.
        dtype: of the chain's large products, see `genpol.policies.precision`.

    Raises:
        InputError: when sampling, if the policy's chain cannot be taken in so many steps.
    """

    has_decode = True

    def __init__(
        self,
        policy: ChunkPolicy,
        *,
        steps: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.policy, self.spec = policy, policy.spec
        self.steps, self.dtype = steps, dtype

    def reset(self) -> None:
        """Nothing to forget."""

    def commit(self, act: Tensor) -> None:
        """Nothing to remember."""

    def keep(self, rows: Tensor) -> None:
        """Nothing to drop."""

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """(B, n, H, A), normalised by `spec`; no gradients."""
        return self.policy.sample(obs, n, generator, self.dtype, self.steps)

    def decode(self, obs: Obs, noise: Tensor) -> Tensor:
        """What standard normal `noise` (B, n, D) becomes: (B, n, H, A); no gradients."""
        return self.policy.decode(obs, noise, self.dtype, self.steps)
