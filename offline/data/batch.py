"""`Batch`: the transitions of one update, and the arrays that they are gathered from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from offline.data.episodes import Episode
from offline.data.returns import ChunkRewards
from offline.draws import moved
from offline.networks.images import random_shift
from offline.networks.normalizer import LANGUAGE
from offline.spec import ActionSpec
from offline.types import Obs

IMAGINED = -2  # the key of what a world model says


@dataclass(frozen=True)
class Batch:
    """B transitions: what `act` did to `obs`."""

    obs: Obs
    act: Tensor
    """(B, H, A), normalised."""
    reward: Tensor
    """(B,) sum_{i<n} gamma^i r_i, n = H unless said otherwise."""
    next_obs: Obs
    """After n steps."""
    discount: Tensor
    """(B,) gamma^n; 0 iff the episode truly ended within them."""
    mc_return: Tensor
    """(B,) discounted rewards to the episode's end; NaN where that is not known."""
    success: Tensor
    """(B,) 1 or 0 of the whole episode, NaN where unknown."""
    key: Tensor | None = None
    """(B,) identifies each transition among all that its source ever held; -1 where it cannot be
    told again, `IMAGINED` where it never happened. A cache by transition goes by it."""
    proposed: Tensor | None = None
    """(B, N, H, A) what the policy proposed at `next_obs`, normalised, where that was recorded; a
    target then chooses among these, and nobody is asked again."""

    def __len__(self) -> int:
        return len(self.act)

    def to(self, device: str | torch.device) -> Batch:
        """The same on another device, but for `key` and `success`: what they decide, such as the
        rows to imitate, is decided on the CPU."""

        def there(name: str) -> Any:
            value = getattr(self, name)
            if name in ("key", "success") or value is None:
                return value
            if isinstance(value, dict):
                return {k: moved(v, device) for k, v in value.items()}
            return moved(value, device)

        return Batch(**{f.name: there(f.name) for f in fields(self)})


@dataclass
class Rows:
    """N transitions as indices into arrays that hold each observation once."""

    obs: dict[str, Tensor]  # (steps + 1 of each episode, ...)
    actions: Tensor  # (steps, A), normalised
    language: Tensor | None  # (instructions, D)
    start: Tensor  # (N,) into obs
    following: Tensor  # (N,) into obs
    first: Tensor  # (N,) into actions
    last: Tensor  # (N,) into actions: the episode's last one
    spoken: Tensor  # (N,) into language
    reward: Tensor
    discount: Tensor
    mc_return: Tensor
    success: Tensor
    chunk: int
    proposed: Tensor | None = None  # (decisions, proposals, H, A), normalised
    proposal: Tensor | None = None  # (N,) into proposed, at following; -1: the data's own chunk

    def __len__(self) -> int:
        return len(self.start)

    @classmethod
    def of(
        cls,
        episode: Episode,
        values: ChunkRewards,
        spec: ActionSpec,
        obs_keys: Sequence[str],
        language: Tensor | None,
    ) -> Rows:
        """One episode's; `language` (D,) is its instruction, embedded."""
        count, steps = len(values), len(episode)
        start = torch.arange(count)
        success = float("nan") if episode.success is None else float(episode.success)
        return cls(
            obs={key: _tensor(episode.obs[key]) for key in obs_keys},
            actions=spec.normalize(_tensor(episode.actions)),
            language=None if language is None else language[None],
            start=start,
            following=(start + spec.chunk).clamp(max=steps),
            first=start.clone(),
            last=torch.full((count,), steps - 1),
            spoken=torch.zeros(count, dtype=torch.long),
            reward=torch.from_numpy(values.rewards),
            discount=torch.from_numpy(values.discounts),
            mc_return=torch.from_numpy(values.returns),
            success=torch.full((count,), success),
            chunk=spec.chunk,
        )

    def only(self, kept: Tensor) -> Rows:
        """The transitions of which `kept` (N,) says true, over the same arrays."""
        each = ["start", "following", "first", "last", "spoken", "reward", "discount"]
        each += ["mc_return", "success"]
        each += ["proposal"] if self.proposal is not None else []
        return replace(self, **{name: getattr(self, name)[kept] for name in each})

    @classmethod
    def join(cls, parts: list[Rows]) -> Rows:
        """One table of many; `parts` is emptied on the way, to hold little twice."""
        obs_at = np.cumsum([0] + [len(next(iter(p.obs.values()))) for p in parts])
        act_at = np.cumsum([0] + [len(p.actions) for p in parts])
        joined = {}
        for name, offsets in (
            ("start", obs_at),
            ("following", obs_at),
            ("first", act_at),
            ("last", act_at),
            ("spoken", range(len(parts))),
        ):
            joined[name] = torch.cat(
                [getattr(p, name) + int(o) for p, o in zip(parts, offsets, strict=False)]
            )
        for name in ("actions", "reward", "discount", "mc_return", "success"):
            joined[name] = torch.cat([getattr(p, name) for p in parts])
        if parts[0].proposed is not None:
            shift = np.cumsum([0] + [len(p.proposed) for p in parts if p.proposed is not None])
            joined["proposal"] = torch.cat(
                [
                    torch.where(p.proposal >= 0, p.proposal + int(o), p.proposal)
                    for p, o in zip(parts, shift, strict=False)
                    if p.proposal is not None
                ]
            )
            joined["proposed"] = torch.cat([p.proposed for p in parts if p.proposed is not None])
        languages = [p.language for p in parts if p.language is not None]
        obs = {key: torch.cat([p.obs.pop(key) for p in parts]) for key in list(parts[0].obs)}
        return cls(
            obs=obs,
            language=torch.cat(languages) if languages else None,
            chunk=parts[0].chunk,
            **joined,
        )

    def take(self, rows: Tensor) -> Batch:
        """The Batch of these rows (B,)."""
        steps = self.first[rows, None] + torch.arange(self.chunk)
        start, following = self.start[rows], self.following[rows]
        obs = {key: values[start] for key, values in self.obs.items()}
        next_obs = {key: values[following] for key, values in self.obs.items()}
        if self.language is not None:
            obs[LANGUAGE] = next_obs[LANGUAGE] = self.language[self.spoken[rows]]
        return Batch(
            obs=obs,
            act=self.actions[torch.minimum(steps, self.last[rows, None])],
            reward=self.reward[rows],
            next_obs=next_obs,
            discount=self.discount[rows],
            mc_return=self.mc_return[rows],
            success=self.success[rows],
            proposed=self._proposed(rows),
            key=rows,
        )

    def _proposed(self, rows: Tensor) -> Tensor | None:
        """(B, N, H, A) at the next states; of those where nobody was asked, the data's own chunk
        from there."""
        if self.proposed is None or self.proposal is None:
            return None
        at, span = self.proposal[rows], self.following[rows] - self.start[rows]
        steps = (self.first[rows] + span)[:, None] + torch.arange(self.chunk)
        own = self.actions[torch.minimum(steps, self.last[rows, None])]
        proposed = own[:, None].repeat(1, self.proposed.shape[1], 1, 1)
        known = at >= 0
        proposed[known] = self.proposed[at[known]]
        return proposed


def shifted(batch: Batch, pixels: int, generator: Generator) -> Batch:
    """The batch with each image of `obs` and `next_obs` shifted at random; see `random_shift`."""
    keys = [key for key, value in batch.obs.items() if value.ndim == 4]
    if not keys or not pixels:
        return batch
    obs, next_obs = (
        {k: random_shift(v, pixels, generator) if k in keys else v for k, v in observed.items()}
        for observed in (batch.obs, batch.next_obs)
    )
    return replace(batch, obs=obs, next_obs=next_obs)


def join_batches(parts: list[Batch]) -> Batch:
    """One batch of many."""

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: torch.cat([v[key] for v in values]) for key in values[0]}
        return None if any(v is None for v in values) else torch.cat(values)

    return Batch(
        **{f.name: joined([getattr(part, f.name) for part in parts]) for f in fields(Batch)}
    )


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype != np.uint8:
        array = array.astype(np.float32, copy=False)
    return torch.from_numpy(np.require(array, requirements=("C", "W")))
