"""A recording's LeRobot v3 folder, to which finished episodes are added one by one.

Every episode has files of its own, so nothing that is there is written again. It belongs to the
recording once its file in meta/episodes is in place, which comes after its data, videos and
decisions; a crash before that leaves files that the next episode replaces. meta/info.json and
meta/stats.json follow, and are made again from meta/episodes where a crash prevented that.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from offline.errors import InputError
from offline.files import sync_path, write_beside
from robots.datasets.lerobot import OBSERVATION, open_parquet
from robots.datasets.recorded import (
    FILES,
    FOLDER,
    Recording,
    beside,
    facts_as_metadata,
    read_recording,
)
from robots.recording import summary
from robots.recording.assemble import Assembled, Made
from robots.recording.features import as_hwc, as_vector, describe, require_same
from robots.recording.film import write_film
from robots.recording.journal import read_at

PATTERN = "chunk-{chunk_index:03d}/file-{file_index:03d}"
SAMPLED = 50  # pictures of an episode that statistics are taken of
PANDAS = {  # how pandas, which LeRobot reads meta/tasks.parquet with, knows the index
    "index_columns": ["__index_level_0__"],
    "column_indexes": [
        {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
         "metadata": {"encoding": "UTF-8"}}
    ],
    "columns": [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64",
         "numpy_type": "int64", "metadata": None},
        {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode",
         "numpy_type": "object", "metadata": None},
    ],
    "creator": {"library": "pyarrow", "version": pa.__version__},
    "pandas_version": "2.0.0",
}  # fmt: skip


class RecordingFolder:
    """The folder, for the one process that adds to it.

    Args:
        path: has genpol/recording.json.

    Attributes:
        episodes: of it, so far.
        ids: of the conversations that they were recorded from.
        written: bytes, by this process.

    Raises:
        InputError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recording: Recording = read_recording(path)
        self._scratch = path / FOLDER / "tmp"
        self._scratch.mkdir(exist_ok=True)
        for left in self._scratch.iterdir():
            left.unlink()
        self._stats: dict[str, list[dict[str, Any]]] = {}
        self._tasks: list[str] = []
        self.features: dict[str, Any] | None = None
        self.ids: set[str] = set()
        self.episodes = self.frames = self.written = 0
        self._read()

    def add(self, episode: Assembled, journal: Path) -> int:
        """Write an episode; returns its index.

        Args:
            episode: of at least one step.
            journal: that it was assembled from, which has its pictures.

        Raises:
            InputError: it observes something else than those before it, or has other actions.
            OSError: the disk refuses.
        """
        name, actions = f"the episode {episode.id}", episode.actions()
        seen = next((made for made in episode.made if made.obs is not None), None)
        if seen is None or seen.obs is None:
            raise InputError(f"{name} has no observation: all of them were dropped")
        dim = len(self.recording.spec["low"])
        if actions.shape[1] != dim:
            raise InputError(f"{name} has actions with A={actions.shape[1]}, expected A={dim}")
        first = {key: _picture(journal, place) for key, place in seen.pictures.items()}
        names = list(self.recording.spec.get("names") or ())
        shapes = {k: p.shape for k, p in first.items() if p is not None}
        features = describe(seen.obs, shapes, names, dim, self.recording.fps)
        if self.features is not None:
            require_same(features, self.features, name)
        _hold(episode, features)
        index, start = self.episodes, self.frames
        columns = self._columns(episode, actions, features, index, start)
        stats = {key: summary.of_rows(values) for key, values in columns.items()}
        row = self._films(episode, journal, features, index, len(actions), stats)
        self._data(columns, features, index)
        self._beside(episode, journal, index)
        self._commit(episode, row, stats, features, index, start, len(actions))
        return index

    # -- reading what is there

    def _read(self) -> None:
        for file in sorted((self.path / "meta" / "episodes").glob("chunk-*/file-*.parquet")):
            with open_parquet(file) as opened:
                rows = opened.read().to_pylist()
            for row in rows:
                self.episodes += 1
                self.frames = max(self.frames, row["dataset_to_index"])
                self._remember(row["tasks"][0], _nested(row))
                self.ids.add(row["genpol/id"])
        info = self.path / "meta" / "info.json"
        if self.episodes:
            if info.is_file():
                self.features = json.loads(info.read_text("utf-8"))["features"]
            else:
                features = self.path / FOLDER / "features.json"
                self.features = json.loads(features.read_text("utf-8"))
            self._summaries()

    def _remember(self, task: str, stats: dict[str, dict[str, Any]]) -> None:
        if task not in self._tasks:
            self._tasks.append(task)
        for key, found in stats.items():
            self._stats.setdefault(key, []).append(found)

    # -- the parts of an episode

    def _columns(
        self, episode: Assembled, actions: np.ndarray, features: dict[str, Any], index: int,
        start: int,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Every column but videos: (T, D) or (T,), in the order of the features."""
        steps = len(actions)
        holds = _holds(episode)
        columns: dict[str, np.ndarray] = {}
        for key, feature in features.items():
            if key.startswith(OBSERVATION) and feature["dtype"] != "video":
                each = [as_vector(made.obs[key]) for made, _ in holds if made.obs is not None]
                counts = [count for made, count in holds if made.obs is not None]
                columns[key] = np.repeat(np.stack(each), counts, axis=0)
        last = np.arange(steps) == steps - 1
        task = self._tasks.index(episode.prompt) if episode.prompt in self._tasks else None
        columns |= {
            "action": actions,
            "next.reward": episode.rewards(),
            "next.done": last,
            "next.success": last & (episode.success is True),
            "intervention": episode.interventions(),
            "timestamp": (np.arange(steps) / self.recording.fps).astype(np.float32),
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, index),
            "index": np.arange(start, start + steps),
            "task_index": np.full(steps, len(self._tasks) if task is None else task),
        }
        return columns

    def _films(
        self, episode: Assembled, journal: Path, features: dict[str, Any], index: int, steps: int,
        stats: dict[str, summary.Statistics],
    ) -> dict[str, Any]:  # fmt: skip
        """Writes the videos, adds their statistics, and returns their columns of meta/episodes."""
        columns: dict[str, Any] = {}
        chunk, file = divmod(index, FILES)
        fps = self.recording.fps
        for key, feature in features.items():
            if feature["dtype"] != "video":
                continue
            target = self._place(f"videos/{key}", index, "mp4")
            scratch = self._scratch / target.name
            kept: list[np.ndarray] = []
            every = max(1, steps // SAMPLED)

            def frames(key: str = key, kept: list[np.ndarray] = kept, every: int = every) -> Any:
                at = 0
                for picture, count in _pictures(episode, journal, key):
                    if at % every < count and len(kept) < 2 * SAMPLED:
                        kept.append(picture)
                    at += count
                    for _ in range(count):
                        yield picture

            write_film(scratch, frames(), tuple(feature["shape"]), fps)
            self._move(scratch, target)
            stats[key] = summary.of_pictures(kept)
            columns |= {
                f"videos/{key}/chunk_index": chunk,
                f"videos/{key}/file_index": file,
                f"videos/{key}/from_timestamp": 0.0,
                f"videos/{key}/to_timestamp": steps / fps,
            }
        return columns

    def _data(self, columns: dict[str, np.ndarray], features: dict[str, Any], index: int) -> None:
        arrays = {}
        for key, feature in features.items():
            if feature["dtype"] != "video":
                kind = pa.from_numpy_dtype(np.dtype(feature["dtype"]))
                size, values = feature["shape"][0], columns[key]
                if size == 1:
                    arrays[key] = pa.array(values.reshape(-1), kind)
                else:
                    flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind)
                    arrays[key] = pa.FixedSizeListArray.from_arrays(flat, size)
        self._write(pa.table(arrays), self._place("data", index, "parquet"))

    def _beside(self, episode: Assembled, journal: Path, index: int) -> None:
        """What LeRobot has no place for: decisions, and the observation after the last action."""
        final = {key: as_vector(values) for key, values in episode.final.items()}
        for key, place in episode.final_pictures.items():
            if (picture := _picture(journal, place)) is not None:
                final[key] = picture
        if final:
            target = beside(self.path, "final", index, "npz")
            scratch = self._scratch / target.name
            np.savez(scratch, **{k.removeprefix(OBSERVATION): v for k, v in final.items()})  # type: ignore[arg-type]
            self._move(scratch, target)
        else:
            beside(self.path, "final", index, "npz").unlink(missing_ok=True)
        at = {made.frame: made for made in episode.made}  # of several at one step, the last
        steps = sum(made.steps for made in episode.made)
        rows = [
            {
                "episode_index": index,
                "frame_index": made.frame,
                "steps": made.steps,
                "observed": at[made.frame] is made and made.obs is not None and made.frame < steps,
                "source": "intervention" if made.by_hand else "policy",
                "time": made.time,
                "latency": made.latency,
                "num_candidates": made.candidates.shape[0],
                "chunk": made.candidates.shape[1],
                "chosen": made.chosen,
                "version": made.version,
                "candidates": made.candidates.reshape(-1),
                "scores": made.scores,
                "answer": made.answer.reshape(-1),
            }
            for made in episode.made
        ]
        floats = {name: pa.list_(pa.float32()) for name in ("candidates", "scores", "answer")}
        kinds = {key: floats.get(key, pa.array([value]).type) for key, value in rows[0].items()
                 if key in floats or not isinstance(value, np.ndarray)}  # fmt: skip
        schema = pa.schema(kinds, metadata=facts_as_metadata(episode.facts(index)))
        table = pa.Table.from_pylist(rows, schema=schema)
        self._write(table, beside(self.path, "decisions", index, "parquet"))

    def _commit(
        self, episode: Assembled, films: dict[str, Any], stats: dict[str, summary.Statistics],
        features: dict[str, Any], index: int, start: int, steps: int,
    ) -> None:  # fmt: skip
        chunk, file = divmod(index, FILES)
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [episode.prompt],
            "length": steps,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": start,
            "dataset_to_index": start + steps,
            **films,
            "meta/episodes/chunk_index": chunk,
            "meta/episodes/file_index": file,
            "genpol/id": episode.id,
        }
        listed = {key: {n: v.tolist() for n, v in found.items()} for key, found in stats.items()}
        row |= {f"stats/{key}/{n}": v for key, found in listed.items() for n, v in found.items()}
        self._remember(episode.prompt, listed)
        tasks = {
            "task_index": pa.array(range(len(self._tasks)), pa.int64()),
            "__index_level_0__": pa.array(self._tasks, pa.string()),
        }
        schema = pa.schema({key: column.type for key, column in tasks.items()},
                           metadata={"pandas": json.dumps(PANDAS)})  # fmt: skip
        self._write(pa.table(tasks, schema=schema), self.path / "meta" / "tasks.parquet")
        if self.features is None:
            text = json.dumps(features)
            write_beside(self.path / FOLDER / "features.json", text.encode())
        self._write(pa.Table.from_pylist([row]), self._place("meta/episodes", index, "parquet"))
        self.features, self.episodes, self.frames = features, index + 1, start + steps
        self.ids.add(episode.id)
        self._summaries()

    def _summaries(self) -> None:
        """meta/info.json and meta/stats.json, of all episodes that are there."""
        assert self.features is not None
        films = any(feature["dtype"] == "video" for feature in self.features.values())
        fps = self.recording.fps
        info = {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": self.episodes,
            "total_frames": self.frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 500,
            "fps": int(fps) if float(fps).is_integer() else fps,
            "splits": {"train": f"0:{self.episodes}"},
            "data_path": f"data/{PATTERN}.parquet",
            "video_path": f"videos/{{video_key}}/{PATTERN}.mp4" if films else None,
            "features": self.features,
        }
        if self.recording.env:
            info["env"] = self.recording.env
        stats = {key: summary.join(parts) for key, parts in self._stats.items()}
        for name, said in (("stats", stats), ("info", info)):
            write_beside(self.path / "meta" / f"{name}.json", json.dumps(said, indent=4).encode())

    # -- files

    def _place(self, kind: str, index: int, suffix: str) -> Path:
        chunk, file = divmod(index, FILES)
        return self.path / kind / f"chunk-{chunk:03d}" / f"file-{file:03d}.{suffix}"

    def _write(self, table: pa.Table, target: Path) -> None:
        scratch = self._scratch / target.name
        pq.write_table(table, scratch)
        self._move(scratch, target)

    def _move(self, scratch: Path, target: Path) -> None:
        """Put a finished file in place; not beside it, where LeRobot takes every parquet file."""
        target.parent.mkdir(parents=True, exist_ok=True)
        sync_path(scratch)
        self.written += scratch.stat().st_size
        os.replace(scratch, target)
        sync_path(target.parent)


def _nested(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{"stats/action/min": v} -> {"action": {"min": v}}."""
    found: dict[str, dict[str, Any]] = {}
    for column, value in row.items():
        if column.startswith("stats/"):
            key, _, name = column.removeprefix("stats/").rpartition("/")
            found.setdefault(key, {})[name] = value
    return found


def _hold(episode: Assembled, features: dict[str, Any]) -> None:
    """Drops observations that lack something, or have it in another shape: they are held."""
    for i, made in enumerate(episode.made):
        if made.obs is None:
            continue
        vectors = {k for k, f in features.items() if k.startswith(OBSERVATION) and
                   f["dtype"] != "video"}  # fmt: skip
        fits = vectors <= {*made.obs} and all(
            as_vector(made.obs[key]).size == features[key]["shape"][0] for key in vectors
        )
        films = {k for k, f in features.items() if f["dtype"] == "video"}
        if not (fits and films <= {*made.pictures}):
            episode.made[i] = dataclasses.replace(made, obs=None, pictures={})


def _holds(episode: Assembled) -> list[tuple[Made, int]]:
    """The decisions whose observations are stored, and for how many steps each is."""
    seen = [made for made in episode.made if made.obs is not None]
    at = {made.frame: made for made in seen}
    total = sum(made.steps for made in episode.made)
    kept = [made for made in at.values() if made.frame < total] or seen[:1]
    starts = [0, *(made.frame for made in kept[1:]), total]
    return [(m, b - a) for m, a, b in zip(kept, starts, starts[1:], strict=False)]


def _pictures(episode: Assembled, journal: Path, key: str) -> Iterator[tuple[np.ndarray, int]]:
    """The pictures of a camera, and for how many steps each is."""
    last: np.ndarray | None = None
    for made, count in _holds(episode):
        picture = _picture(journal, made.pictures[key])
        if picture is None or (last is not None and picture.shape != last.shape):
            picture = last
        if picture is None:
            raise InputError(f'the episode {episode.id} has no picture of "{key}" that can be read')
        last = picture
        yield picture, count


def _picture(journal: Path, place: int) -> np.ndarray | None:
    record = read_at(journal, place)
    return None if record is None else as_hwc(np.asarray(record["image"]))
