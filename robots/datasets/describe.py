"""Describes a dataset and lists its problems: one pass, one episode in memory at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from offline.data.episodes import Episode, Episodes
from offline.errors import InputError, shown
from robots.datasets.statistics import ActionStatistics, ContentHash

LANGUAGES = 1000  # distinct instructions remembered


@dataclass
class Description:
    """Everything plain, so that it can be written as JSON."""

    format: str
    path: str
    env: str | None
    env_args: dict[str, Any] | None
    episodes: int
    steps: int
    lengths: dict[str, float]
    """min, median, max."""
    observations: dict[str, dict[str, Any]]
    """By key: shape of one, dtype."""
    actions: dict[str, Any]
    """dim, chunk, spec_from ("file" or "data"), and dimensions: each with its numbers."""
    rewards: dict[str, float]
    """min, max, and the mean return of an episode."""
    successes: dict[str, int]
    """yes, no, unknown."""
    by_operator: dict[str, dict[str, int]]
    """The same, by who acted, where the episodes say."""
    terminated: int
    """Episodes that ended by themselves."""
    splits: dict[str, int]
    languages: dict[str, int]
    """Episodes by instruction."""
    content_hash: str
    notes: list[str] = field(default_factory=list)
    """Worth knowing, no fault."""
    warnings: list[str] = field(default_factory=list)
    """Usable, but perhaps not for what is intended."""
    problems: list[str] = field(default_factory=list)
    """What makes it invalid."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def describe(episodes: Episodes, *, progress: Any = iter) -> Description:
    """Read every episode, count and check.

    Args:
        episodes: any dataset.
        progress: wraps the range of indices, such as tqdm.

    Returns:
        The description; problems hold one line for each episode that cannot be used, one for each
        action dimension that leaves its bounds.
    """
    tally = _Tally(episodes)
    for index in progress(range(len(episodes))):
        try:
            episode = episodes[index]
        except InputError as error:
            tally.problems.append(str(error))
            continue
        tally.add(index, episode)
    return tally.describe()


class _Tally:
    """What one pass accumulates."""

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes
        self.actions, self.hash = ActionStatistics(), ContentHash()
        self.problems: list[str] = []
        self.shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        self.rewards: list[tuple[float, float, float]] = []  # min, max, sum
        self.outcomes: Counter[str] = Counter()
        self.by_operator: dict[str, Counter[str]] = {}
        self.languages: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.terminated = self.read = 0

    def add(self, index: int, episode: Episode) -> None:
        shapes = {k: (v.shape[1:], str(v.dtype)) for k, v in episode.obs.items()}
        if not self.shapes:
            self.shapes = shapes
        if shapes != self.shapes:
            self.problems.append(
                f"episode {index} has observations {_brief(shapes)}, "
                f"the first {_brief(self.shapes)}"
            )
        if self.actions.count and episode.actions.shape[1] != len(self.actions.mean):
            self.problems.append(
                f"episode {index} has A={episode.actions.shape[1]} action dimensions, the first "
                f"has {len(self.actions.mean)}"
            )
            return
        self.read += 1
        self.actions.add(episode.actions)
        self.hash.add(episode)
        if np.isfinite(episode.rewards).all():
            r = episode.rewards.astype(np.float64)
            self.rewards.append((float(r.min()), float(r.max()), float(r.sum())))
        else:
            self.problems.append(f"episode {index}: the rewards have NaN or infinite values")
        outcome = {True: "yes", False: "no", None: "unknown"}[episode.success]
        self.outcomes[outcome] += 1
        if "operator" in episode.meta:
            operator = str(episode.meta["operator"])
            self.by_operator.setdefault(operator, Counter())[outcome] += 1
        if episode.language and (
            episode.language in self.languages or len(self.languages) < LANGUAGES
        ):
            self.languages[episode.language] += 1
        for key in ("last_obs", "rewards"):
            if key in episode.meta:
                self.notes[f"{key}: {episode.meta[key]}"] += 1
        self.terminated += episode.terminated

    def describe(self) -> Description:
        episodes, meta = self.episodes, self.episodes.meta
        lengths = np.asarray(episodes.lengths)
        low, high, returns = np.array(self.rewards or [(0.0, 0.0, 0.0)]).T
        return Description(
            format=str(meta.get("format", "unknown")),
            path=str(meta.get("path", "")),
            env=episodes.env,
            env_args=meta.get("env_args"),
            episodes=len(episodes),
            steps=int(lengths.sum()),
            lengths={
                "min": int(lengths.min()),
                "median": float(np.median(lengths)),
                "max": int(lengths.max()),
            },
            observations={
                key: {"shape": list(shape), "dtype": dtype}
                for key, (shape, dtype) in sorted(self.shapes.items())
            },
            actions=self._describe_actions(),
            rewards={
                "min": float(low.min()),
                "max": float(high.max()),
                "mean_return": float(returns.mean()),
            },
            successes={key: self.outcomes[key] for key in ("yes", "no", "unknown")},
            by_operator={
                name: {key: found[key] for key in ("yes", "no", "unknown")}
                for name, found in sorted(self.by_operator.items())
            },
            terminated=self.terminated,
            splits={name: len(indices) for name, indices in episodes.splits.items()},
            languages=dict(self.languages.most_common()),
            content_hash=self.hash.hexdigest(),
            notes=[
                f"{note} ({count} of {len(episodes)} episodes)"
                for note, count in self.notes.items()
            ],
            warnings=self._warnings(),
            problems=self._problems(),
        )

    def _describe_actions(self) -> dict[str, Any]:
        found = self.actions
        described: dict[str, Any] = {"spec_from": self.episodes.meta.get("spec_from", "file")}
        if not found.count:
            return {**described, "dim": None, "chunk": None, "dimensions": []}
        spec = self.episodes.spec
        p01, p99 = found.percentiles(1, 99)
        described |= {"dim": len(found.mean), "chunk": spec.chunk}
        if "action_chunk" in self.episodes.meta:
            described["flattened_chunk"] = self.episodes.meta["action_chunk"]
        described["dimensions"] = [
            {
                "name": spec.names[i] if spec.names else None,
                "gripper": spec.gripper is not None and i == spec.gripper % spec.dim,
                "low": spec.low[i],
                "high": spec.high[i],
                "min": float(found.min[i]),
                "p01": float(p01[i]),
                "p99": float(p99[i]),
                "max": float(found.max[i]),
                "constant": bool(found.max[i] - found.min[i] < 1e-6),
            }
            for i in range(min(len(found.mean), spec.dim))
        ]
        return described

    def _problems(self) -> list[str]:
        problems, found = list(self.problems), self.actions
        if not found.count:
            return problems
        spec = self.episodes.spec
        if spec.dim != len(found.mean):
            return [
                *problems,
                f"the actions have A={len(found.mean)} dimensions, the file's action_spec "
                f"A={spec.dim}",
            ]
        for i in range(spec.dim):
            room = 1e-4 * max(spec.high[i] - spec.low[i], 1e-3)
            least, most = found.min[i], found.max[i]
            if least < spec.low[i] - room or most > spec.high[i] + room:
                worst = most if most - spec.high[i] > spec.low[i] - least else least
                problems.append(
                    f"actions out of range: {spec.describe(i)} has {worst:g}, its bounds are "
                    f"[{spec.low[i]:g}, {spec.high[i]:g}]: in another unit, or not clipped?"
                )
        saved = self.episodes.meta.get("content_hash")
        complete = self.read == len(self.episodes) and not problems
        if complete and saved and self._whole() and saved != self.hash.hexdigest():
            problems.append(
                "the content does not match the file's content_hash: it was changed since it was "
                "written"
            )
        return problems

    def _whole(self) -> bool:
        """Not one split of a file."""
        return self.episodes.meta.get("split") is None

    def _warnings(self) -> list[str]:
        warnings, read = [], self.read
        if read and not self.outcomes["yes"]:
            if self.outcomes["unknown"] == read:
                warnings.append(
                    "no episode says whether it succeeded: a value function needs success, or "
                    "rewards that show it"
                )
            else:
                warnings.append(
                    f"none of {read} episodes succeeded: a value function has nothing to tell apart"
                )
        elif read and self.outcomes["yes"] == read:
            warnings.append(
                "every episode succeeded: a value function learns more from failures as well"
            )
        for name, members in self.episodes.splits.items():
            if not len(members):
                warnings.append(f'split "{name}" is empty')
        if self.actions.count:
            spec = self.episodes.spec
            still = np.flatnonzero(self.actions.max - self.actions.min < 1e-6)
            for i in (int(i) for i in still if i < spec.dim):
                warnings.append(f"{spec.describe(i)} is always {self.actions.min[i]:g}")
        return warnings


def _brief(shapes: dict[str, tuple[tuple[int, ...], str]]) -> str:
    each = (f"{shown(key)} {shape} {dtype}" for key, (shape, dtype) in sorted(shapes.items()))
    return shown(", ".join(each), 160)
