"""An episode out of its journal: which rows were executed, and at which of them it was decided.

A journal holds these records, in the order in which they happened:

    {"kind": "begin", "id", "started"}
    {"kind": "image", "key", "image"}         of the next decision, or the next thing told
    {"kind": "decision", "time", "latency", "obs", "prompt", "candidates", "scores", "chosen",
     "answer", "version"}                     without "obs" where it was dropped
    {"kind": "told", "executed", "intervention", "reward", "success", "obs"}
    {"kind": "end", "why"}                    missing after a crash

A decision whose execution nobody told of was executed whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robots.datasets.recorded import Facts

Places = dict[str, int]  # key -> where its picture lies in the journal


@dataclass
class Made:
    """A decision, and what came of it."""

    time: float
    latency: float
    candidates: np.ndarray  # (K, H, A)
    scores: np.ndarray
    chosen: int
    answer: np.ndarray  # (H', A)
    version: str
    prompt: str
    obs: dict[str, np.ndarray] | None  # None where it was dropped
    pictures: Places
    parts: list[tuple[np.ndarray, bool]] | None = None  # executed (n, A), by a human; None: untold
    reward: float = 0.0
    frame: int = 0

    def rows(self) -> list[tuple[np.ndarray, bool]]:
        """What was executed, in parts, and whether a human did it."""
        return [(self.answer, False)] if self.parts is None else self.parts

    @property
    def steps(self) -> int:
        return sum(len(part) for part, _ in self.rows())

    @property
    def by_hand(self) -> bool:
        return any(human and len(part) for part, human in self.rows())


@dataclass
class Assembled:
    """An episode of T steps and its decisions."""

    id: str
    started: float
    ended: str = "lost"
    made: list[Made] = field(default_factory=list)
    success: bool | None = None
    rewarded: bool = False
    final: dict[str, np.ndarray] = field(default_factory=dict)
    final_pictures: Places = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The first instruction that there was."""
        return next((made.prompt for made in self.made if made.prompt), "")

    def actions(self) -> np.ndarray:
        """(T, A) float32."""
        parts = [part for made in self.made for part, _ in made.rows()]
        return np.concatenate(parts).astype(np.float32)

    def interventions(self) -> np.ndarray:
        """(T,) bool: which steps a human executed."""
        parts = [np.full(len(part), by) for made in self.made for part, by in made.rows()]
        return np.concatenate(parts)

    def rewards(self) -> np.ndarray:
        """(T,) float32: those told, each at the last step before it; else 1 for success at last."""
        total = sum(made.steps for made in self.made)
        rewards = np.zeros(total, np.float32)
        if self.rewarded:
            for made in self.made:
                rewards[max(made.frame + made.steps - 1, 0)] += made.reward
        elif self.success:
            rewards[-1] = 1.0
        return rewards

    def facts(self, index: int) -> Facts:
        """What the recording says of the episode as a whole."""
        versions = list(dict.fromkeys(made.version for made in self.made if made.version))
        return Facts(
            id=self.id,
            episode_index=index,
            started=self.started,
            ended=self.ended,
            success=self.success,
            rewarded=self.rewarded,
            interventions=int(self.interventions().sum()),
            dropped=sum(made.obs is None for made in self.made),
            versions=versions,
        )


def assemble(records: Iterable[tuple[int, dict[str, Any]]], name: str) -> Assembled | None:
    """The episode of a journal's records; None where nothing was executed.

    Args:
        records: each with its place in the journal.
        name: of the episode, where its first record is missing.
    """
    found = Assembled(name, 0.0)
    pictures: Places = {}
    for place, record in records:
        kind = record.get("kind")
        if kind == "begin":
            found.id, found.started = str(record["id"]), float(record["started"])
        elif kind == "image":
            pictures[str(record["key"])] = place
        elif kind == "decision":
            found.made.append(_made(record, pictures))
            pictures = {}
        elif kind == "told":
            _tell(found, record, pictures)
            pictures = {}
        elif kind == "end":
            found.ended = str(record["why"])
    frame = 0
    for made in found.made:
        made.frame = frame
        frame += made.steps
    _end(found, frame)
    return found if frame else None


def _made(record: dict[str, Any], pictures: Places) -> Made:
    obs = record.get("obs")
    return Made(
        time=float(record["time"]),
        latency=float(record["latency"]),
        candidates=np.asarray(record["candidates"], np.float32),
        scores=np.asarray(record["scores"], np.float32),
        chosen=int(record["chosen"]),
        answer=np.asarray(record["answer"], np.float32),
        version=str(record["version"]),
        prompt=str(record["prompt"]),
        obs=None if obs is None else dict(obs),
        pictures=pictures if obs is not None else {},
    )


def _tell(found: Assembled, record: dict[str, Any], pictures: Places) -> None:
    if record.get("success") is not None:
        found.success = bool(record["success"])
    if record.get("obs") is not None:
        found.final, found.final_pictures = dict(record["obs"]), pictures
    if not found.made:
        return
    last = found.made[-1]
    if record.get("executed") is not None:
        part = np.asarray(record["executed"], np.float32)
        last.parts = [*(last.parts or []), (part, bool(record["intervention"]))]
    if record.get("reward") is not None:
        found.rewarded = True
        last.reward += float(record["reward"])


def _end(found: Assembled, steps: int) -> None:
    """An observation after the last step is the episode's final one, whoever decided at it."""
    last = found.made[-1] if found.made else None
    if last is not None and last.frame == steps and last.obs is not None and not found.final:
        found.final, found.final_pictures = last.obs, last.pictures
