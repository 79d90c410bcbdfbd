"""LeRobot datasets of version 3: many episodes in each parquet file, described by meta/.

    meta/info.json                 codebase_version, fps, features, data_path, video_path, splits
    meta/stats.json                min, max, mean, std, q01, q99 ... of each feature
    meta/tasks.parquet             task_index and the instruction
    meta/episodes/chunk-*/*.parquet   length, dataset_from_index, data/chunk_index, data/file_index
    data/chunk-*/file-*.parquet    observation.*, action, next.reward, next.done, next.success

"observation.state" is called "state" here, "observation.images.top" "images.top". A step stores its
observation and its action but no observation after the last action: the last one is repeated.
Videos are decoded only when asked for.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from offline.data.episodes import Episode
from offline.errors import InputError
from offline.spec import ActionSpec
from robots.datasets.hdf5 import as_observation, require_file
from robots.datasets.lerobot_video import read_frames
from robots.datasets.statistics import guess_bounds, spec_from_actions

OBSERVATION = "observation."
STATISTICS = ("min", "max", "mean", "std", "q01", "q99")

log = logging.getLogger(__name__)


class LeRobotEpisodes:
    """A LeRobot v3 folder as `Episodes`.

    Args:
        path: the folder that holds meta/ and data/.
        videos: decode video observations too (needs imageio-ffmpeg).

    Raises:
        InputError: another version, or files that are missing or damaged.
    """

    def __init__(self, path: str | Path, *, videos: bool = False) -> None:
        self.path = Path(path).expanduser()
        require_file(self.path)
        self._info = self._json("meta/info.json")
        version = str(self._info.get("codebase_version"))
        if not version.startswith("v3"):
            raise InputError(
                f'"{self.path}" is a LeRobot dataset of version {version}, expected v3: convert it '
                "with lerobot's convert_dataset_v21_to_v30"
            )
        features = self._info.get("features", {})
        if "action" not in features:
            raise InputError(f'"{self.path}": meta/info.json lists no feature "action"')
        seen = {k: v for k, v in features.items() if k.startswith(OBSERVATION)}
        videos_there = [k for k, v in seen.items() if v.get("dtype") == "video"]
        self._videos = videos_there if videos else []
        skipped = [] if videos else videos_there
        if skipped:
            names = ", ".join(k.removeprefix(OBSERVATION) for k in skipped)
            log.warning('"%s": skipping videos (%s); LeRobotEpisodes(videos=True)', path, names)
        kept = {k: v for k, v in seen.items() if k not in skipped}
        if not kept:
            raise InputError(
                f'"{self.path}" has no observations but videos; open it with videos=True'
            )
        self._images = [k for k, v in kept.items() if v.get("dtype") == "image"]
        self._columns = [k for k in kept if k not in self._videos]
        self.obs_shapes: dict[str, tuple[int, ...]] = {
            key.removeprefix(OBSERVATION): _shape(kept[key]) for key in sorted(kept)
        }
        self._rows = self._episodes()
        self.lengths = np.array([row["length"] for row in self._rows], dtype=np.int64)
        self._tasks = self._read_tasks()
        self.splits = _read_splits(self._info.get("splits") or {}, len(self._rows))
        self.env: str | None = self._info.get("env") or None
        self.meta: dict[str, Any] = {
            "format": "lerobot",
            "path": str(self.path),
            "fps": self._info.get("fps"),
            "robot_type": self._info.get("robot_type"),
            "skipped_videos": skipped,
            "spec_from": "data",
        }

    @cached_property
    def spec(self) -> ActionSpec:
        """From meta/stats.json where it has all of the action's numbers, else from the data."""
        names = self._info["features"]["action"].get("names")
        if isinstance(names, dict):  # {"motors": [...]}
            names = next(iter(names.values()), None)
        stats = {}
        if (self.path / "meta" / "stats.json").is_file():
            stats = self._json("meta/stats.json").get("action", {})
        if all(name in stats for name in STATISTICS):
            values = {n: np.asarray(stats[n], float).reshape(-1) for n in STATISTICS}
            low, high = guess_bounds(values["min"], values["max"])
            spec = ActionSpec(
                low=tuple(low.tolist()),
                high=tuple(high.tolist()),
                mean=tuple(values["mean"].tolist()),
                std=tuple(values["std"].tolist()),
                p01=tuple(values["q01"].tolist()),
                p99=tuple(values["q99"].tolist()),
                mask=(True,) * len(low),
            )
        else:
            spec = spec_from_actions(self._actions(), f'"{self.path}"')
        if names and len(names) == spec.dim:
            spec = ActionSpec.from_dict({**spec.to_dict(), "names": list(names)})
        return spec

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Episode:
        """Read one episode.

        Raises:
            InputError: names the folder, the episode and what is wrong.
        """
        row = self._rows[index]
        name = f'"{self.path}" episode {row["episode_index"]}'
        wanted = ["action", "next.reward", "next.done", "next.success", "task_index"]
        table = self._table(row, wanted + self._columns, name)
        actions = as_matrix(table["action"])
        steps = len(actions)
        if steps != row["length"]:
            raise InputError(
                f"{name} has {steps} rows of data, its length is {row['length']}: was a file cut "
                "off, or changed?"
            )
        obs = {}
        for key in self._columns:
            if key not in table:
                raise InputError(f'{name} has no column "{key}", which meta/info.json lists')
            values = self._pictures(table[key]) if key in self._images else as_matrix(table[key])
            obs[key.removeprefix(OBSERVATION)] = as_observation(values)
        for key in self._videos:
            obs[key.removeprefix(OBSERVATION)] = read_frames(
                self._video(row, key), row[f"videos/{key}/from_timestamp"], steps, name
            )
        success = done = None
        if "next.success" in table:
            success = bool(as_matrix(table["next.success"]).any())
        if "next.done" in table:
            done = bool(as_matrix(table["next.done"])[-1:].any())
        episode = Episode(
            obs={key: np.concatenate([obs[key], obs[key][-1:]]) for key in sorted(obs)},
            actions=actions,
            rewards=(
                as_matrix(table["next.reward"]).reshape(-1)
                if "next.reward" in table
                else np.zeros(steps, np.float32)
            ),
            terminated=bool(success) if done is None else done,
            success=success,
            language=self._instruction(row, table),
            meta={
                "episode_index": int(row["episode_index"]),
                "last_obs": "missing, the one before it repeated",
                **({} if "next.reward" in table else {"rewards": "missing, read as 0"}),
            },
        )
        episode.check(name)
        return episode

    def _instruction(self, row: dict[str, Any], table: dict[str, Any]) -> str | None:
        if "task_index" in table and len(table["task_index"]):
            task = self._tasks.get(table["task_index"][0].as_py())
            if task is not None:
                return task
        return row["tasks"][0] if row.get("tasks") else None

    # -- files

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / name).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f'cannot read "{self.path / name}": {error}') from error

    def _episodes(self) -> list[dict[str, Any]]:
        files = sorted((self.path / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise InputError(f'"{self.path}" has no meta/episodes/chunk-*/file-*.parquet')
        rows: list[dict[str, Any]] = []
        for file in files:
            with open_parquet(file) as opened:
                names = [n for n in opened.schema_arrow.names if not n.startswith("stats/")]
                rows += opened.read(columns=names).to_pylist()
        rows.sort(key=lambda row: row["episode_index"])
        needed = ("length", "dataset_from_index", "data/chunk_index", "data/file_index")
        if missing := [name for name in needed if rows and name not in rows[0]]:
            raise InputError(f'"{self.path}": meta/episodes has no column "{missing[0]}"')
        if not rows:
            raise InputError(f'"{self.path}" has no episodes')
        first: dict[Path, int] = {}  # of every data file: its first row's index
        for row in rows:
            row["file"] = self._data_file(row)
            start = row["dataset_from_index"]
            first[row["file"]] = min(first.get(row["file"], start), start)
        for row in rows:
            row["start"] = row["dataset_from_index"] - first[row["file"]]
        return rows

    def _data_file(self, row: dict[str, Any]) -> Path:
        return self.path / self._info["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )

    def _video(self, row: dict[str, Any], key: str) -> tuple[Path, float]:
        path = self.path / self._info["video_path"].format(
            video_key=key,
            chunk_index=row[f"videos/{key}/chunk_index"],
            file_index=row[f"videos/{key}/file_index"],
        )
        return path, float(self._info["fps"])

    def _table(self, row: dict[str, Any], names: list[str], what: str) -> dict[str, Any]:
        """The named columns that there are, of one episode: only its row groups are read."""
        start, stop = row["start"], row["start"] + row["length"]
        with open_parquet(row["file"]) as file:
            there = [n for n in names if n in file.schema_arrow.names]
            if "action" not in there:
                raise InputError(f'"{row["file"]}" has no column "action"')
            groups, before, skipped = [], 0, None
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if before < stop and before + rows > start:
                    groups.append(group)
                    skipped = before if skipped is None else skipped
                before += rows
            if skipped is None:
                raise InputError(f'{what} is missing from "{row["file"]}"')
            table = file.read_row_groups(groups, columns=there).slice(start - skipped, stop - start)
        return {name: table[name].combine_chunks() for name in there}

    def _actions(self) -> Iterator[np.ndarray]:
        for row in self._rows:
            yield as_matrix(self._table(row, ["action"], f'"{self.path}"')["action"])

    def _read_tasks(self) -> dict[int, str]:
        """Instructions by task_index; pandas stores them in a column named after its index."""
        path = self.path / "meta" / "tasks.parquet"
        if not path.is_file():
            return {}
        with open_parquet(path) as file:
            columns = file.read().to_pydict()
        texts = columns.get("task", columns.get("__index_level_0__"))
        return dict(zip(columns.get("task_index", ()), texts or (), strict=False))

    def _pictures(self, column: Any) -> np.ndarray:
        """(T, height, width, 3) from encoded bytes, or from files that the column names."""
        from PIL import Image

        frames = []
        for cell in column.to_pylist():
            stored = cell["bytes"] or (self.path / cell["path"]).read_bytes()
            with Image.open(io.BytesIO(stored)) as image:
                frames.append(np.asarray(image.convert("RGB")))
        return np.stack(frames)


def _shape(feature: dict[str, Any]) -> tuple[int, ...]:
    """Of one observation: images (height, width, channels), everything else one vector."""
    shape, names = tuple(feature["shape"]), feature.get("names")
    if feature.get("dtype") not in ("image", "video"):
        return (int(np.prod(shape)),)
    channels_first = isinstance(names, list) and str(names[0]).startswith("channel")
    return (*shape[1:], shape[0]) if channels_first else shape


def _read_splits(saved: dict[str, str], episodes: int) -> dict[str, np.ndarray]:
    """{"train": "0:50"} as indices."""
    found = {}
    for name, text in saved.items():
        first, _, last = str(text).partition(":")
        if first.isdigit() and last.isdigit():
            found[name] = np.arange(int(first), min(int(last), episodes))
    return found


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A parquet file, open; damage becomes an InputError here too."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError('LeRobot datasets need pyarrow: pip install "genpol[data]"') from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f'cannot read "{path}": {reason}') from error


def as_matrix(column: Any) -> np.ndarray:
    """(T, D) float32 from a column of numbers or of lists (of fixed length or not)."""
    rows = len(column)
    while hasattr(column, "flatten") and hasattr(column.type, "value_type"):
        column = column.flatten()
    values = np.asarray(column.to_numpy(zero_copy_only=False), np.float32)
    return values.reshape(rows, -1) if rows else np.zeros((0, 1), np.float32)
