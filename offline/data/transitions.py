"""Chunked transitions of a dataset, sampled in batches; from memory, or streamed when too large."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from offline.data.batch import Batch, Rows, join_batches
from offline.data.episodes import Episode, Episodes
from offline.data.recorded_rows import recorded_rows, with_proposals
from offline.data.returns import RewardKind, chunk_rewards
from offline.errors import InputError, did_you_mean
from offline.networks.normalizer import LANGUAGE, low_dim_keys
from offline.spec import ActionSpec

__all__ = ["Batch", "Embed", "Transitions"]

Embed = Callable[[str], Tensor]
_REUSE = 4  # times that a streamed transition is drawn, on average, before its episode is dropped


class Transitions:
    """All chunks of H actions of a dataset's split, with rewards and discounts.

    Reading it passes over the dataset once (for the statistics); what fits in `memory_limit` is
    then kept, larger sets are streamed through a buffer of episodes that is refilled on the way.

    Args:
        episodes: the dataset.
        chunk: H.
        spec: normalises the actions; default the dataset's.
        discount: gamma per environment step.
        reward: see `offline.data.returns`; "none" for cloning.
        reward_scale: multiplies rewards and returns.
        n_step: rewards summed before a target bootstraps, at least H; default H.
        split: "train", "valid" or another of the dataset's; all episodes if it has no splits.
        indices: these episodes instead of a split.
        obs_keys: observations to keep; default the one-dimensional ones.
        language: embeds an instruction; adds the observation "language".
        memory_limit: bytes.
        proposals: how many of the policy's recorded proposals each batch has for its next states
            (`Batch.proposed`); 0 for none. See `offline.data.recorded_rows`.

    Attributes:
        fingerprint: tells whether what was read is what was read before.
        ids: of the recorded episodes among those read, as recordings name them.

    Raises:
        InputError: an episode is faulty, no chunk is long enough, or a key or split is unknown.
    """

    def __init__(
        self,
        episodes: Episodes,
        chunk: int,
        *,
        spec: ActionSpec | None = None,
        discount: float = 0.98,
        reward: RewardKind = "sparse",
        reward_scale: float = 1.0,
        n_step: int | None = None,
        split: str | None = "train",
        indices: Sequence[int] | np.ndarray | None = None,
        obs_keys: Sequence[str] | None = None,
        language: Embed | None = None,
        memory_limit: int = 2 << 30,
        proposals: int = 0,
    ) -> None:
        self.spec = (spec or episodes.spec).with_chunk(chunk)
        self.chunk, self.discount = chunk, discount
        self.reward, self.reward_scale = reward, reward_scale
        self.n_step = chunk if n_step is None else n_step
        self.indices = _indices(episodes, split, indices)
        self.obs_keys = _obs_keys(episodes, obs_keys)
        self.language = language
        self.episodes, self.proposals = episodes, proposals
        self.successes = self.failures = 0
        self.instructions: set[str] = set()
        self.ids: list[str] = []
        self.obs_shapes = {key: tuple(episodes.obs_shapes[key]) for key in self.obs_keys}

        step_bytes = sum(
            math.prod(shape) * (1 if len(shape) == 3 else 4) for shape in self.obs_shapes.values()
        ) + 4 * (self.spec.dim + 8)
        total = int((np.asarray(episodes.lengths)[self.indices] + 1).sum()) * step_bytes
        self.streamed = total > memory_limit
        self._buffer_steps = max(1, memory_limit // step_bytes)

        kept: list[Rows] = []
        self._counts = np.zeros(len(self.indices), np.int64)
        moments, digest = _Moments(), hashlib.sha256()
        for position in range(len(self.indices)):
            episode = self._read(position)
            moments.add({k: episode.obs[k] for k in self.obs_keys if episode.obs[k].ndim == 2})
            self.successes += episode.success is True
            self.failures += episode.success is False
            if (known := episode.meta.get("id")) is not None:
                self.ids.append(str(known))
            if episode.language is not None:
                self.instructions.add(episode.language)
            _add(digest, int(self.indices[position]), episode, self.obs_keys)
            rows = self._rows(episode, position)
            self._counts[position] = len(rows)
            if not self.streamed and len(rows):
                kept.append(rows)
        if not self._counts.sum():
            raise InputError(
                f"no episode has a chunk of {self.n_step} actions "
                f"(the longest has {int(np.max(episodes.lengths, initial=0))} steps): "
                f"pass a smaller {'--action-chunk' if self.n_step == chunk else '--n-step'}"
            )
        self.obs_stats = moments.mean_std()
        self.fingerprint = digest.hexdigest()[:16]
        if language is not None:
            self.obs_shapes[LANGUAGE] = tuple(language(next(iter(self.instructions), "")).shape)
        self._table = None if self.streamed else Rows.join(kept)
        self._buffer: deque[Rows] = deque()
        self._buffered: deque[int] = deque()
        """Which of `indices` they are of."""
        self._order: list[int] = []
        self._held = self._drawn = 0

    def __len__(self) -> int:
        return int(self._counts.sum())

    def sample(self, batch_size: int, generator: Generator | None = None) -> Batch:
        """Draw transitions uniformly with replacement (streamed: from the present buffer)."""
        if self._table is not None:
            return self._table.take(torch.randint(len(self), (batch_size,), generator=generator))
        self._refill(generator)
        sizes = torch.tensor([len(rows) for rows in self._buffer])
        ends = sizes.cumsum(0)
        drawn = torch.randint(int(ends[-1]), (batch_size,), generator=generator).sort().values
        which = torch.searchsorted(ends, drawn, right=True)
        parts = [
            self._buffer[int(i)].take(drawn[which == i] - (ends[i] - sizes[i]))
            for i in which.unique()
        ]
        self._drawn += batch_size
        # a row of a buffer that comes and goes says nothing of which transition it is
        return dataclasses.replace(join_batches(parts), key=torch.full((batch_size,), -1))

    def state_dict(self) -> dict[str, Any]:
        """Where a stream stands. What is in memory stands nowhere: a generator says what comes."""
        return {
            "buffered": np.array(self._buffered, np.int64),
            "order": np.array(self._order, np.int64),
            "drawn": self._drawn,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned; reads the episodes of a stream's buffer again."""
        self._buffer.clear()
        self._buffered.clear()
        self._held = 0
        for position in state["buffered"].tolist():
            self._hold(position)
        self._order, self._drawn = state["order"].tolist(), state["drawn"]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every transition once, in order."""
        if self._table is not None:
            for rows in torch.arange(len(self)).split(batch_size):
                yield self._table.take(rows)
            return
        for position in range(len(self.indices)):
            table = self._rows(self._read(position), position)
            for rows in torch.arange(len(table)).split(batch_size):
                yield table.take(rows)

    def _read(self, position: int) -> Episode:
        index = int(self.indices[position])
        episode = self.episodes[index]
        episode.check(f"episode {index}")
        shapes = {key: self.obs_shapes[key] for key in self.obs_keys}
        episode.require_like(f"episode {index}", shapes, self.spec.dim)
        return episode

    def _rows(self, episode: Episode, position: int) -> Rows:
        language = None if self.language is None else _embedded(self.language, episode)
        if episode.observed is not None:
            rows = recorded_rows(
                episode,
                self.spec,
                self.obs_keys,
                n_step=self.n_step,
                discount=self.discount,
                reward=self.reward,
                reward_scale=self.reward_scale,
                language=language,
            )
        else:
            values = chunk_rewards(
                episode, self.n_step, self.discount, self.reward, self.reward_scale
            )
            rows = Rows.of(episode, values, self.spec, self.obs_keys, language)
            rows.following = (rows.start + self.n_step).clamp(max=len(episode))
        return self._with_proposals(rows, episode, position) if self.proposals else rows

    def _with_proposals(self, rows: Rows, episode: Episode, position: int) -> Rows:
        decisions = getattr(self.episodes, "decisions", None)
        frames, candidates = np.zeros(0, np.int64), []
        if decisions is not None:
            made = decisions(int(self.indices[position]))
            frames, candidates = made.frames, made.candidates
        ended = bool(episode.terminated or episode.success)
        return with_proposals(rows, frames, candidates, self.spec, self.proposals, ended=ended)

    def _refill(self, generator: Generator | None) -> None:
        """Drop the oldest episodes that were drawn from enough, read others in their place."""
        while self._buffer and self._drawn >= _REUSE * len(self._buffer[0]):
            gone = self._buffer.popleft()
            self._buffered.popleft()
            self._drawn -= _REUSE * len(gone)
            self._held -= len(gone)
        while not self._buffer or self._held < self._buffer_steps:
            if not self._order:
                if len(self._buffer) >= np.count_nonzero(self._counts):
                    return
                self._order = torch.randperm(len(self.indices), generator=generator).tolist()
            position = self._order.pop()
            if self._counts[position]:
                self._hold(position)

    def _hold(self, position: int) -> None:
        self._buffer.append(self._rows(self._read(position), position))
        self._buffered.append(position)
        self._held += len(self._buffer[-1])


class _Moments:
    """Mean and std of each key, in one pass."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}
        self.shift: dict[str, np.ndarray] = {}  # the first value: keeps the squares small

    def add(self, values: dict[str, np.ndarray]) -> None:
        for key, array in values.items():
            shift = self.shift.setdefault(key, np.asarray(array[0], np.float64))
            x = np.asarray(array, np.float64) - shift
            count, total, squares = self.sums.get(key, (0, 0.0, 0.0))
            self.sums[key] = count + len(x), total + x.sum(0), squares + (x**2).sum(0)

    def mean_std(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        out = {}
        for key, (count, total, squares) in self.sums.items():
            mean = total / count
            std = np.sqrt(np.maximum(squares / count - mean**2, 0))
            out[key] = (mean + self.shift[key]).astype(np.float32), std.astype(np.float32)
        return out


def _add(digest: Any, index: int, episode: Episode, keys: Sequence[str]) -> None:
    """An episode into a fingerprint; of images every eighth row and column, to be quick."""
    said = (index, len(episode), episode.terminated, episode.success, episode.language)
    digest.update(repr(said).encode())
    for array in (episode.actions, episode.rewards, *(episode.obs[key] for key in keys)):
        digest.update(np.ascontiguousarray(array[:, ::8, ::8] if array.ndim == 4 else array))


def _embedded(language: Embed, episode: Episode) -> Tensor:
    return language(episode.language or "").detach().float().cpu()


def _indices(
    episodes: Episodes, split: str | None, indices: Sequence[int] | np.ndarray | None
) -> np.ndarray:
    if indices is None and split is not None and episodes.splits:
        if split not in episodes.splits:
            raise InputError(
                f'the dataset has no split "{split}".{did_you_mean(split, episodes.splits)}'
            )
        indices = episodes.splits[split]
    chosen = np.arange(len(episodes)) if indices is None else np.asarray(indices, np.int64)
    if not len(chosen):
        raise InputError("no episodes to learn from" + (f' in split "{split}"' if split else ""))
    return chosen


def _obs_keys(episodes: Episodes, asked: Sequence[str] | None) -> list[str]:
    if asked is None:
        asked = low_dim_keys(episodes.obs_shapes)
    if not asked:
        raise InputError(
            "the dataset has no one-dimensional observations: name its images with --image-keys"
        )
    for key in asked:
        if key not in episodes.obs_shapes:
            raise InputError(
                f'the dataset has no observation "{key}".{did_you_mean(key, episodes.obs_shapes)}'
            )
    return sorted(asked)
