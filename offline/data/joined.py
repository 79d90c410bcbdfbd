"""`JoinedEpisodes`: several datasets as one, such as demonstrations and a robot's own episodes.

Episodes are numbered one dataset after the other. What all datasets observe is observed, by the
names of the first: the others' names are matched (`offline.naming`). The action
spec is one: bounds that a dataset states win over bounds that were guessed from its actions, and
datasets that state different bounds are refused. `offline.data.mixed_transitions` draws batches
from the datasets by their weights.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from offline.data.episodes import Episode, Episodes
from offline.errors import InputError, shown
from offline.naming import match_names
from offline.spec import ActionSpec

TOLERANCE = 1e-3  # of a bound, as a share of the dimension's width

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One of the datasets."""

    name: str
    episodes: Episodes
    weight: float
    """Its share of each batch; those of all sources sum to 1."""
    start: int
    """Index of its first episode among all."""

    @property
    def indices(self) -> np.ndarray:
        """Of its episodes, among all."""
        return np.arange(self.start, self.start + len(self.episodes))


class JoinedEpisodes:
    """See the top of the file.

    Args:
        parts: at least one dataset.
        weights: shares of each batch, above 0, in any unit; default equal ones.
        names: what errors call the datasets; default their paths.

    Attributes:
        sources: the datasets with their weights.

    Raises:
        InputError: another number of weights, no observation that all share, an observation or
            actions of different shapes, different bounds, or different environments.
    """

    def __init__(
        self,
        parts: Sequence[Episodes],
        weights: Sequence[float] = (),
        names: Sequence[str] = (),
    ) -> None:
        if weights and len(weights) != len(parts):
            raise InputError(
                f"{len(weights)} --data-weights for {len(parts)} datasets: pass one for each --data"
            )
        shares = np.asarray(weights or [1.0] * len(parts), float)
        if not (np.isfinite(shares).all() and (shares > 0).all()):
            raise InputError(f"weights of datasets are above 0, received {list(weights)}")
        shares = shares / shares.sum()
        parts = [parts[0], *(_named_like(parts[0], part) for part in parts[1:])]
        known = names or [
            str(part.meta.get("path", f"dataset {i}")) for i, part in enumerate(parts)
        ]
        starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        self.sources = tuple(
            Source(name, part, float(share), start)
            for name, part, share, start in zip(known, parts, shares, starts, strict=False)
        )
        self.lengths = np.concatenate([np.asarray(part.lengths) for part in parts])
        self.obs_shapes = _shared_shapes(self.sources)
        self.env = _one_env(self.sources)
        stated = [part for part in parts if part.meta.get("spec_from") != "data"]
        self.spec = _one_spec(self.sources)
        self.meta: dict[str, Any] = {"format": "several", "path": ", ".join(known)}
        if not stated:
            self.meta["spec_from"] = "data"
        self.splits = _splits(self.sources)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Episode:
        source, at = self.locate(index)
        return source.episodes[at]

    def locate(self, index: int) -> tuple[Source, int]:
        """The dataset that holds an episode, and its index there.

        Raises:
            IndexError: there is no such episode.
        """
        index = index + len(self) if index < 0 else index
        for source in self.sources:
            if source.start <= index < source.start + len(source.episodes):
                return source, index - source.start
        raise IndexError(index)


class Renamed:
    """A dataset whose observations have other names.

    Args:
        source: the dataset.
        names: its names -> those to use.
    """

    def __init__(self, source: Episodes, names: Mapping[str, str]) -> None:
        self.source, self.names = source, dict(names)
        self.obs_shapes = {self.names.get(k, k): tuple(s) for k, s in source.obs_shapes.items()}
        self.lengths, self.env = source.lengths, source.env
        self.meta, self.splits = source.meta, source.splits

    @property
    def spec(self) -> ActionSpec:
        """The dataset's."""
        return self.source.spec

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Episode:
        episode = self.source[index]
        obs = {self.names.get(key, key): values for key, values in episode.obs.items()}
        return dataclasses.replace(episode, obs=obs)

    def __getattr__(self, name: str) -> Any:
        """What else a recording says of its episodes."""
        if name not in ("decisions", "facts", "rows", "episode_indices"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        return getattr(self.source, name)


def _named_like(first: Episodes, other: Episodes) -> Episodes:
    """The other dataset, with the first one's names of what both observe."""
    found = match_names(first.obs_shapes, other.obs_shapes, "rename one of them")
    names = {theirs: ours for ours, theirs in found.items() if theirs != ours}
    return Renamed(other, names) if names else other


def join(
    parts: Sequence[Episodes], weights: Sequence[float] = (), names: Sequence[str] = ()
) -> Episodes:
    """Several datasets as one; one as it is. Arguments and errors are those of `JoinedEpisodes`."""
    if len(parts) == 1 and len(weights) <= 1:
        return parts[0]
    return JoinedEpisodes(parts, weights, names)


def sources_of(episodes: Episodes) -> tuple[Source, ...]:
    """The datasets that a dataset was joined from; itself where it is one."""
    found = getattr(episodes, "sources", None)
    if isinstance(found, tuple) and found and isinstance(found[0], Source):
        return found
    return (Source("", episodes, 1.0, 0),)


def by_source(
    episodes: Episodes, rule: Callable[[Episodes], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """The episodes to learn from and those held out, by a rule that is asked of each dataset."""
    parts = []
    for source in sources_of(episodes):
        train, valid = rule(source.episodes)
        parts.append((np.asarray(train) + source.start, np.asarray(valid) + source.start))
    train, valid = (np.concatenate(which) for which in zip(*parts, strict=True))
    return train, valid


def _shared_shapes(sources: Sequence[Source]) -> dict[str, tuple[int, ...]]:
    """What all observe; what only some do is left out, and said."""
    shapes: dict[str, tuple[int, ...]] = {}
    missing: dict[str, str] = {}
    for source in sources:
        for key, shape in source.episodes.obs_shapes.items():
            if (known := shapes.setdefault(key, tuple(shape))) != tuple(shape):
                raise InputError(
                    f'the observation "{shown(key)}" has shape {known} in one --data and '
                    f"{tuple(shape)} in {shown(source.name)}: are they of the same robot, at the "
                    "same image size?"
                )
    for source in sources:
        for key in shapes:
            if key not in source.episodes.obs_shapes:
                missing.setdefault(key, source.name)
    kept = {key: shape for key, shape in sorted(shapes.items()) if key not in missing}
    if not kept:
        listed = "; ".join(
            f"{shown(s.name)}: {', '.join(map(shown, sorted(s.episodes.obs_shapes)[:8]))}"
            for s in sources
        )
        raise InputError(
            f"no observation is in every --data ({listed}): are they of the same robot?"
        )
    for key, name in sorted(missing.items()):
        log.warning('the observation "%s" is left out: %s does not have it', key, name)
    return kept


def _one_env(sources: Sequence[Source]) -> str | None:
    names = {s.episodes.env: s.name for s in sources if s.episodes.env is not None}
    if len({re.sub(r"-v\d+$", "", env) for env in names}) > 1:
        said = ", ".join(f"{env} ({shown(name)})" for env, name in names.items())
        raise InputError(f"the datasets are of different environments: {said}")
    return next(iter(names), None)


def _one_spec(sources: Sequence[Source]) -> ActionSpec:
    """Bounds as the datasets state them, statistics of the mixture."""
    specs = [source.episodes.spec for source in sources]
    first = specs[0]
    for source, spec in zip(sources, specs, strict=True):
        if spec.dim != first.dim:
            raise InputError(
                f"the actions have A={first.dim} in {shown(sources[0].name)} and A={spec.dim} in "
                f"{shown(source.name)}: are they of the same robot?"
            )
    stated = [
        (source, spec)
        for source, spec in zip(sources, specs, strict=True)
        if source.episodes.meta.get("spec_from") != "data"
    ]
    if stated:
        model = stated[0][1]
        low, high = np.asarray(model.low, float), np.asarray(model.high, float)
        for source, spec in stated[1:]:
            _require_same_bounds(model, spec, stated[0][0].name, source.name)
    else:
        model = first
        low = np.min([spec.low for spec in specs], axis=0)
        high = np.max([spec.high for spec in specs], axis=0)
    share = np.asarray([source.weight for source in sources])[:, None]
    means, stds = (np.asarray([getattr(s, n) for s in specs], float) for n in ("mean", "std"))
    mean = (share * means).sum(0)
    square = (share * (stds**2 + means**2)).sum(0)
    return dataclasses.replace(
        model,
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(np.maximum(square - mean**2, 0)).tolist()),
        p01=tuple(np.min([spec.p01 for spec in specs], axis=0).tolist()),
        p99=tuple(np.max([spec.p99 for spec in specs], axis=0).tolist()),
    )


def _require_same_bounds(one: ActionSpec, other: ActionSpec, name: str, other_name: str) -> None:
    for i in range(one.dim):
        ends = np.array([[s.low[i], s.high[i]] for s in (one, other)])
        if np.isinf(ends).any():
            same = bool((ends[0] == ends[1]).all())
        else:
            room = TOLERANCE * max(ends[0, 1] - ends[0, 0], 1e-12)
            same = np.allclose(ends[0], ends[1], rtol=0, atol=room)
        if not same:
            raise InputError(
                f"{one.describe(i)} of the actions is in [{one.low[i]:g}, {one.high[i]:g}] in "
                f"{shown(name)}, in [{other.low[i]:g}, {other.high[i]:g}] in {shown(other_name)}: "
                "is one of them normalised?"
            )


def _splits(sources: Sequence[Source]) -> dict[str, np.ndarray]:
    """Those that every dataset has, joined."""
    names = set.intersection(*(set(source.episodes.splits) for source in sources))
    return {
        name: np.concatenate([np.asarray(s.episodes.splits[name]) + s.start for s in sources])
        for name in sorted(names)
    }
