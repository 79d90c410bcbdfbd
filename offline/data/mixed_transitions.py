"""`MixedTransitions`: transitions of several datasets, each with its share of every batch.

A dataset's share does not depend on its size, so that a few hours of a robot's own episodes count
beside years of demonstrations. Observations are standardised by the statistics of the mixture:

    mean = sum_i w_i mean_i,   var = sum_i w_i (var_i + mean_i^2) - mean^2
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Generator

from offline.data.batch import Batch
from offline.data.episodes import Episodes
from offline.data.joined import sources_of
from offline.data.mixture import Mixture, Share
from offline.data.transitions import Transitions
from offline.errors import InputError
from offline.networks.normalizer import ObsStats


class MixedTransitions:
    """What `Transitions` is of one dataset.

    Args:
        parts: the datasets' transitions, with the same spec and observations.
        weights: their shares of a batch, which sum to 1.
        names: of the datasets.
        starts: index of each dataset's first episode among all.
        episodes: all of them.

    Attributes:
        fingerprint: tells whether what was read is what was read before, in the same shares.
    """

    def __init__(
        self,
        parts: Sequence[Transitions],
        weights: Sequence[float],
        names: Sequence[str],
        starts: Sequence[int],
        episodes: Episodes,
    ) -> None:
        first = parts[0]
        self.parts, self.weights = tuple(parts), tuple(weights)
        self.spec, self.chunk, self.discount = first.spec, first.chunk, first.discount
        self.reward, self.reward_scale, self.n_step = (
            first.reward,
            first.reward_scale,
            first.n_step,
        )
        self.obs_keys, self.obs_shapes = first.obs_keys, first.obs_shapes
        self.language, self.episodes = first.language, episodes
        self.indices = np.concatenate(
            [part.indices + start for part, start in zip(parts, starts, strict=True)]
        )
        self.successes = sum(part.successes for part in parts)
        self.failures = sum(part.failures for part in parts)
        self.instructions = set().union(*(part.instructions for part in parts))
        self.ids = [one for part in parts for one in part.ids]
        self.streamed = any(part.streamed for part in parts)
        self.obs_stats = mixed_stats([part.obs_stats for part in parts], weights)
        shares = [f"{weight:.6g}" for weight in weights]
        self.fingerprint = "+".join(
            f"{share}*{part.fingerprint}" for share, part in zip(shares, parts, strict=True)
        )
        offsets = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        self.mixture = Mixture(
            [
                Share(f"{i} {name}", part, weight, key_offset=offset)
                for i, (name, part, weight, offset) in enumerate(
                    zip(names, parts, weights, offsets, strict=False)
                )
            ]
        )

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def sample(self, batch_size: int, generator: Generator | None = None) -> Batch:
        """Draw from each dataset its share of a batch, uniformly with replacement."""
        return self.mixture.sample(batch_size, generator)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every transition once, one dataset after the other."""
        for part in self.parts:
            yield from part.batches(batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Where the streams stand."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned."""
        for part, stored in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(stored)


Data = Transitions | MixedTransitions


def mixed_stats(stats: Sequence[ObsStats], weights: Sequence[float]) -> dict[str, Any]:
    """Mean and std of each observation under a mixture; see the top of the file."""
    out = {}
    for key in stats[0]:
        means = np.asarray([part[key][0] for part in stats], np.float64)
        stds = np.asarray([part[key][1] for part in stats], np.float64)
        share = np.asarray(weights).reshape(-1, *([1] * (means.ndim - 1)))
        mean = (share * means).sum(0)
        square = (share * (stds**2 + means**2)).sum(0)
        std = np.sqrt(np.maximum(square - mean**2, 0))
        out[key] = mean.astype(np.float32), std.astype(np.float32)
    return out


def transitions_of(
    episodes: Episodes,
    chunk: int,
    *,
    indices: Sequence[int] | np.ndarray | None = None,
    memory_limit: int = 2 << 30,
    make: type[Transitions] = Transitions,
    **settings: Any,
) -> Data:
    """The transitions of a dataset, or of several that were joined, which share the memory.

    Args:
        episodes: a dataset, or a `JoinedEpisodes`.
        chunk: H.
        indices: these episodes; default those of the split, see `Transitions`.
        memory_limit: bytes.
        make: `Transitions`, or a class like it.
        settings: of `Transitions`.

    Raises:
        InputError: see `Transitions`; or a dataset has none of the episodes that were asked for.
    """
    sources = sources_of(episodes)
    if len(sources) == 1:
        return make(episodes, chunk, indices=indices, memory_limit=memory_limit, **settings)
    settings = {"spec": episodes.spec, **settings}
    if settings.get("obs_keys") is None:  # what all of them observe
        shared = [key for key, shape in episodes.obs_shapes.items() if len(shape) == 1]
        settings["obs_keys"] = shared
    steps = [float(np.sum(source.episodes.lengths)) for source in sources]
    found, kept = [], []
    for source, length in zip(sources, steps, strict=True):
        own = None
        if indices is not None:
            own = np.asarray(indices, np.int64)
            inside = (own >= source.start) & (own < source.start + len(source.episodes))
            own = own[inside] - source.start
            if not len(own):
                continue
        limit = int(memory_limit * length / max(sum(steps), 1.0))
        try:
            part = make(source.episodes, chunk, indices=own, memory_limit=limit, **settings)
        except InputError as error:
            raise type(error)(f"{source.name}: {error}") from error
        found.append(part)
        kept.append(source)
    if not found:
        raise InputError("no episodes to learn from")
    total = sum(source.weight for source in kept)
    return MixedTransitions(
        found,
        [source.weight / total for source in kept],
        [source.name for source in kept],
        [source.start for source in kept],
        episodes,
    )
