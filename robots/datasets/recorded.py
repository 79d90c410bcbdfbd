"""Recordings: a LeRobot v3 folder of what a server saw and did, with every decision beside it.

    meta/, data/, videos/              LeRobot's; one row for each action that was executed
    genpol/recording.json              `Recording`: the actions' spec, frames per second, who served
    genpol/decisions/chunk-*/file-*.parquet   one file for each episode: a row for each decision,
                                       and `Facts` of the episode under "genpol" in its metadata
    genpol/final/chunk-*/file-*.npz    what was observed after the last action, where it was sent
    genpol/open/*.journal              episodes that are going on, or that a crash left

A robot sends an observation for each decision, and executes several actions after it. The rows
between two decisions repeat the observation of the first: `Episode.observed` tells them apart, and
no transition starts or ends at such a row. Chunks of a recording have H actions, K are candidates.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offline.data.episodes import Episode
from offline.documents import read_document
from offline.errors import InputError, shown
from offline.pictures import resize
from offline.spec import ActionSpec
from robots.datasets.lerobot import LeRobotEpisodes
from robots.datasets.parquet import as_matrix, open_parquet

FORMAT = 1
FOLDER = "genpol"
FILES = 1000
"""Episodes in each chunk-* folder."""
NUMBERS = ("frame_index", "steps", "chosen", "num_candidates", "chunk")  # columns of whole numbers


@dataclass(frozen=True)
class Recording:
    """genpol/recording.json."""

    format: int
    spec: dict[str, Any]
    """The actions': `ActionSpec.to_dict()`."""
    fps: float
    """Actions per second of the robot."""
    env: str | None = None
    served: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the latest server was started with: policy or upstream, values, K."""


@dataclass(frozen=True)
class Facts:
    """What is known of one episode as a whole."""

    id: str
    """Of the conversation that it was recorded from, unique."""
    episode_index: int
    started: float
    """Seconds since 1970, UTC."""
    ended: str
    """"reset", "success", "reward", "closed", "cut" (too long, or no room), or "lost" (a crash)."""
    success: bool | None = None
    """What the robot said last; None where it said nothing."""
    rewarded: bool = False
    """Whether the robot sent rewards."""
    interventions: int = 0
    """Steps that a human executed."""
    dropped: int = 0
    """Decisions whose observation was dropped, so as not to slow a decision."""
    versions: list[str] = dataclasses.field(default_factory=list)
    """Which versions of the value or the edit decided, in order."""


@dataclass(frozen=True)
class Decisions:
    """The D decisions of an episode, in the environment's units."""

    frames: np.ndarray
    """(D,) int64: the step that each was made at; its observation is `episode.obs[...][frame]`."""
    steps: np.ndarray
    """(D,) int64: how many actions were executed until the next."""
    observed: np.ndarray
    """(D,) bool: whether the observation was kept."""
    intervention: np.ndarray
    """(D,) bool: a human executed other actions; they are not the policy's."""
    times: np.ndarray
    """(D,) seconds since 1970, UTC, when the observation came."""
    latencies: np.ndarray
    """(D,) seconds until the decision was made."""
    candidates: list[np.ndarray]
    """D arrays (K, H, A); K may differ."""
    scores: list[np.ndarray]
    """D arrays (K,); empty where nothing was scored."""
    chosen: np.ndarray
    """(D,) int64 into the candidates; -1 where what was sent is none of them, such as a blend."""
    answers: list[np.ndarray]
    """D arrays (H', A): what was sent to the robot."""
    executed: list[np.ndarray]
    """D arrays (steps, A): what the robot did."""
    versions: list[str]
    """D: which version of the value or the edit decided; "" where only one was served."""

    def __len__(self) -> int:
        return len(self.frames)


class RecordedEpisodes(LeRobotEpisodes):
    """A recording as `Episodes`, with `decisions(i)`.

    Args:
        path: the folder.
        options: of `LeRobotEpisodes`.

    Raises:
        InputError: no episode has ended yet, or files are missing or damaged.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        folder = Path(path).expanduser()
        self.recording = read_recording(folder)
        if not (folder / "meta" / "info.json").is_file():
            raise InputError(f'"{path}" is a recording in which no episode has ended yet')
        super().__init__(folder, **options)
        self.env = self.env or self.recording.env
        self.meta |= {"format": "recording", "spec_from": "recording"}

    @property
    def spec(self) -> ActionSpec:  # type: ignore[override]
        """The recording's, with the statistics of what was executed.

        Bounds are wider than the recording's where a human left them.
        """
        said = ActionSpec.from_dict(self.recording.spec, f'"{self.path}": recording.json')
        found = super().spec
        if found.dim != said.dim:
            raise InputError(
                f'"{self.path}" has actions with A={found.dim}, recording.json says A={said.dim}'
            )
        stats = self.path / "meta" / "stats.json"
        ends = read_document(stats, dict[str, dict[str, Any]]).get("action", {})
        low = np.minimum(said.low, np.asarray(ends.get("min", said.low), float))
        high = np.maximum(said.high, np.asarray(ends.get("max", said.high), float))
        each = {name: getattr(found, name) for name in ("mean", "std", "p01", "p99")}
        return dataclasses.replace(
            said, chunk=1, low=tuple(low.tolist()), high=tuple(high.tolist()), **each
        )

    def __getitem__(self, index: int) -> Episode:
        """Read one episode; see `LeRobotEpisodes`."""
        episode = super().__getitem__(index)
        facts, table = self._decisions(index)
        observed = np.zeros(len(episode) + 1, bool)
        frames = table["frame_index"].to_numpy()
        observed[frames[table["observed"].to_numpy(zero_copy_only=False)]] = True
        meta = {key: value for key, value in episode.meta.items() if key != "last_obs"}
        obs = dict(episode.obs)
        final = self._final(index)
        for key, last in final.items():
            if key in obs and last.ndim == 3 and last.dtype == np.uint8:
                last = resize(last, (obs[key].shape[1], obs[key].shape[2]))
            if key in obs and obs[key].shape[1:] == last.shape:
                obs[key] = np.concatenate([obs[key][:-1], last[None].astype(obs[key].dtype)])
        observed[-1] = bool(final)
        if not final:
            meta["last_obs"] = "missing, the one before it repeated"
        by_hand = np.zeros(len(episode), bool)
        for frame, steps, source in zip(
            frames, table["steps"].to_numpy(), table["source"].to_pylist(), strict=True
        ):
            by_hand[frame : frame + steps] = source == "intervention"
        return dataclasses.replace(
            episode,
            obs=obs,
            actions=np.array(episode.actions),  # parquet's own are read-only
            terminated=facts.success is True,
            success=facts.success,
            language=episode.language or None,
            observed=observed,
            meta={**meta, "id": facts.id, "ended": facts.ended, "versions": facts.versions,
                  "intervention": by_hand.tolist()},
        )  # fmt: skip

    def facts(self, index: int) -> Facts:
        """What is known of an episode as a whole."""
        return self._decisions(index)[0]

    def success_of(self, index: int) -> bool | None:
        """What the robot said last of an episode's success."""
        return self.facts(index).success

    def decisions(self, index: int) -> Decisions:
        """The decisions of one episode.

        Raises:
            InputError: the file is missing, damaged, or does not fit the episode.
        """
        _, table = self._decisions(index)
        row, where = self._rows[index], f'"{self.path}" episode {index}'
        actions = as_matrix(self._table(row, ["action"], where)["action"], where, "action")
        size = actions.shape[1]
        numbers = {name: table[name].to_numpy().astype(np.int64) for name in NUMBERS}
        frames, steps = numbers["frame_index"], numbers["steps"]
        lists = {
            name: [np.asarray(cell, np.float32) for cell in table[name].to_pylist()]
            for name in ("candidates", "scores", "answer")
        }
        try:
            candidates = [
                flat.reshape(count, chunk, size)
                for flat, count, chunk in zip(
                    lists["candidates"], numbers["num_candidates"], numbers["chunk"], strict=True
                )
            ]
            answers = [flat.reshape(-1, size) for flat in lists["answer"]]
        except ValueError as error:
            raise InputError(f"{where} has candidates of another shape than it says") from error
        return Decisions(
            frames=frames,
            steps=steps,
            observed=table["observed"].to_numpy(zero_copy_only=False),
            intervention=np.array([s == "intervention" for s in table["source"].to_pylist()], bool),
            times=table["time"].to_numpy(),
            latencies=table["latency"].to_numpy(),
            candidates=candidates,
            scores=lists["scores"],
            chosen=numbers["chosen"],
            answers=answers,
            executed=[actions[f : f + n] for f, n in zip(frames, steps, strict=True)],
            versions=table["version"].to_pylist(),
        )

    def _decisions(self, index: int) -> tuple[Facts, Any]:
        """An episode's facts, and the table of its decisions."""
        path = beside(self.path, "decisions", int(self._rows[index]["episode_index"]), "parquet")
        if not path.is_file():
            raise InputError(f'"{path}" is missing: was the recording copied whole?')
        with open_parquet(path) as file:
            said = (file.schema_arrow.metadata or {}).get(FOLDER.encode(), b"{}")
            table = file.read()
        facts = read_document(said, Facts, f'"{path}"')
        missing = {*NUMBERS, "observed", "source", "time", "latency", "candidates", "scores",
                   "answer", "version"} - {*table.column_names}  # fmt: skip
        if missing:
            raise InputError(f'"{path}" has no column "{min(missing)}"')
        frames, steps = table["frame_index"].to_numpy(), table["steps"].to_numpy()
        length = int(self._rows[index]["length"])
        if (frames < 0).any() or (steps < 0).any() or (frames + steps > length).any():
            raise InputError(f'"{path}" has decisions beyond the {length} steps of its episode')
        return facts, table.combine_chunks()

    def _final(self, index: int) -> dict[str, np.ndarray]:
        path = beside(self.path, "final", int(self._rows[index]["episode_index"]), "npz")
        if not path.is_file():
            return {}
        try:
            with np.load(path, allow_pickle=False) as saved:
                return {key: saved[key] for key in saved.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f'cannot read "{path}": {shown(str(error), 160)}') from error


def read_recording(folder: Path) -> Recording:
    """genpol/recording.json of a folder.

    Raises:
        InputError: there is none, it is damaged, or of a newer format.
    """
    path = folder / FOLDER / "recording.json"
    said = read_document(path, Recording)
    if said.format > FORMAT:
        raise InputError(
            f'"{path}" has the format {said.format}, this genpol reads up to {FORMAT}: update it'
        )
    return said


def is_recording(folder: Path) -> bool:
    """Whether a folder is one."""
    return (folder / FOLDER / "recording.json").is_file()


def beside(folder: Path, kind: str, episode: int, suffix: str) -> Path:
    """Where an episode's "decisions" or "final" lie."""
    chunk, file = divmod(episode, FILES)
    return folder / FOLDER / kind / f"chunk-{chunk:03d}" / f"file-{file:03d}.{suffix}"


def facts_as_metadata(facts: Facts) -> dict[str, str]:
    """What a file of decisions has in its schema's metadata."""
    return {FOLDER: json.dumps(dataclasses.asdict(facts))}
