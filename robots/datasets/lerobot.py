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
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le

from offline.data.episodes import Episode
from offline.documents import as_document, read_document
from offline.errors import InputError, shown
from offline.naming import match_names
from offline.pictures import resize
from offline.spec import ActionSpec
from robots.datasets.frame_cache import cached
from robots.datasets.hdf5 import as_observation, require_file
from robots.datasets.lerobot_video import Clip, read_frames
from robots.datasets.parquet import as_matrix, open_parquet
from robots.datasets.statistics import guess_bounds, spec_from_actions

OBSERVATION = "observation."
VIDEO = ("chunk_index", "file_index", "from_timestamp")
COLUMNS = {  # of meta/episodes, and the least value of each
    "episode_index": 0,
    "length": 1,
    "dataset_from_index": 0,
    "data/chunk_index": 0,
    "data/file_index": 0,
}
FIELD = re.compile(r"\{(\w*)(?::0?(\d{1,2})d?)?[^{}]*\}")
DIGITS = re.compile(r"[0-9]{1,12}")
STATISTICS = ("min", "max", "mean", "std", "q01", "q99")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Feature:
    """What meta/info.json says of a column."""

    shape: tuple[Annotated[int, Ge(0), Le(2**20)], ...]
    dtype: str = ""
    names: Any = None


@dataclass(frozen=True)
class Info:
    """meta/info.json, as far as it is read."""

    codebase_version: str
    features: dict[str, Feature]
    data_path: str
    video_path: str | None = None
    fps: float | None = None
    splits: dict[str, Any] | None = None
    env: str | None = None
    robot_type: str | None = None


class LeRobotEpisodes:
    """A LeRobot v3 folder as `Episodes`.

    Args:
        path: the folder that holds meta/ and data/.
        videos: videos to decode, by their names such as "images.top"; True decodes all. Needs PyAV
            or imageio-ffmpeg. Frames are kept on the disk, see `robots.datasets.frame_cache`.
        image_size: height and width that pictures and frames are resized to; default their own.

    Raises:
        InputError: another version, a video that could be several, or files that are missing or
            damaged.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        videos: bool | Sequence[str] = False,
        image_size: int | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        require_file(self.path)
        info = self._info = read_document(self.path / "meta" / "info.json", Info)
        if not info.codebase_version.startswith("v3"):
            raise InputError(
                f'"{self.path}" is a LeRobot dataset of version {shown(info.codebase_version)}, '
                "expected v3: convert it with lerobot's convert_dataset_v21_to_v30"
            )
        features = info.features
        if "action" not in features:
            raise InputError(f'"{self.path}": meta/info.json lists no feature "action"')
        seen = {k: v for k, v in features.items() if k.startswith(OBSERVATION)}
        videos_there = [k for k, v in seen.items() if v.dtype == "video"]
        self._videos = _asked(videos, videos_there)
        skipped = [key for key in videos_there if key not in self._videos]
        names = [key.removeprefix(OBSERVATION) for key in skipped]
        kept = {k: v for k, v in seen.items() if k not in skipped}
        if not kept:
            raise InputError(
                f'"{self.path}" has no observations but videos: name them with --image-keys '
                f"{' '.join(names)}"
            )
        if skipped and not self._videos:
            log.warning('"%s": skipping videos; --image-keys %s reads them', path, " ".join(names))
        self._images = [k for k, v in kept.items() if v.dtype == "image"]
        self._columns = [k for k in kept if k not in self._videos]
        self._stored_shapes = {key: _shape(kept[key]) for key in kept}
        self.obs_shapes: dict[str, tuple[int, ...]] = {
            key.removeprefix(OBSERVATION): (
                (image_size, image_size, 3) if image_size and len(shape) == 3 else shape
            )
            for key, shape in sorted(self._stored_shapes.items())
        }
        self._rows = self._episodes()
        self.lengths = np.array([row["length"] for row in self._rows], dtype=np.int64)
        self.episode_indices = np.array([row["episode_index"] for row in self._rows])
        self._tasks = self._read_tasks()
        self.splits = _read_splits(info.splits or {}, len(self._rows))
        self.env: str | None = info.env or None
        self.meta: dict[str, Any] = {
            "format": "lerobot",
            "path": str(self.path),
            "fps": info.fps,
            "robot_type": info.robot_type,
            "skipped_videos": skipped,
            "spec_from": "data",
        }

    @cached_property
    def spec(self) -> ActionSpec:
        """From meta/stats.json where it has all of the action's numbers, else from the data."""
        names = self._info.features["action"].names
        if isinstance(names, dict):  # {"motors": [...]}
            names = next(iter(names.values()), None)
        stats: dict[str, Any] = {}
        path = self.path / "meta" / "stats.json"
        if path.is_file():
            stats = read_document(path, dict[str, dict[str, Any]]).get("action", {})
        if all(name in stats for name in STATISTICS):
            values = {n: _statistic(stats[n], f'"{path}": action.{n}') for n in STATISTICS}
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
            spec = ActionSpec.from_dict(spec.to_dict(), f'"{path}"')
        else:
            spec = spec_from_actions(self._actions(), f'"{self.path}"')
        if isinstance(names, list) and len(names) == spec.dim and all(map(_is_text, names)):
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
        actions = as_matrix(table["action"], name, "action")
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
            if key in self._images:
                values = self._pictures(table[key], key, name)
            else:
                values = as_matrix(table[key], name, key)
            obs[key.removeprefix(OBSERVATION)] = as_observation(values)
        for key in self._videos:
            obs[key.removeprefix(OBSERVATION)] = self._frames(row, key, steps, name)
        success = done = None
        if "next.success" in table:
            success = bool(as_matrix(table["next.success"], name, "next.success").any())
        if "next.done" in table:
            done = bool(as_matrix(table["next.done"], name, "next.done")[-1:].any())
        episode = Episode(
            obs={key: np.concatenate([obs[key], obs[key][-1:]]) for key in sorted(obs)},
            actions=actions,
            rewards=(
                as_matrix(table["next.reward"], name, "next.reward").reshape(-1)
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
        episode.require_like(name, self.obs_shapes, actions.shape[1])
        return episode

    def success_of(self, index: int) -> bool | None:
        """Whether an episode succeeded, as far as it says, without its observations."""
        row = self._rows[index]
        name = f'"{self.path}" episode {row["episode_index"]}'
        column = self._table(row, ["action", "next.success"], name).get("next.success")
        return None if column is None else bool(as_matrix(column, name, "next.success").any())

    def _instruction(self, row: dict[str, Any], table: dict[str, Any]) -> str | None:
        if "task_index" in table and len(table["task_index"]):
            index = table["task_index"][0].as_py()
            if type(index) is int and index in self._tasks:
                return self._tasks[index]
        tasks = row.get("tasks")
        if not isinstance(tasks, list) or not tasks:
            return None
        if not isinstance(tasks[0], str):
            raise InputError(f'"{self.path}": a task should be text, received {shown(tasks[0])}')
        return tasks[0]

    def _frames(self, row: dict[str, Any], key: str, steps: int, name: str) -> np.ndarray:
        if not self._info.video_path:
            raise InputError(f'"{self.path}": meta/info.json has no "video_path"')
        said: dict[str, Any] = {part: row.get(f"videos/{key}/{part}") for part in VIDEO}
        if wrong := [part for part, value in said.items() if not isinstance(value, (int, float))]:
            raise InputError(
                f'{name}: "videos/{key}/{wrong[0]}" should be a number, received '
                f"{shown(said[wrong[0]])}"
            )
        path = self._inside(
            self._info.video_path,
            video_key=key,
            chunk_index=int(said["chunk_index"]),
            file_index=int(said["file_index"]),
        )
        if not self._info.fps or not 0 < self._info.fps < 1e6:
            raise InputError(f'"{self.path}": meta/info.json has the fps {self._info.fps}')
        start, fps = float(said["from_timestamp"]), float(self._info.fps)
        clip = Clip(path, fps, start, steps, self._stored_shapes[key])
        height, width = self.obs_shapes[key.removeprefix(OBSERVATION)][:2]
        return cached(clip, (height, width), lambda: read_frames(clip, name, (height, width)))

    # -- files

    def _episodes(self) -> list[dict[str, Any]]:
        files = sorted((self.path / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise InputError(f'"{self.path}" has no meta/episodes/chunk-*/file-*.parquet')
        rows: list[dict[str, Any]] = []
        for file in files:
            with open_parquet(file) as opened:
                names = [n for n in opened.schema_arrow.names if not n.startswith("stats/")]
                rows += opened.read(columns=names).to_pylist()
        if not rows:
            raise InputError(f'"{self.path}" has no episodes')
        for row in rows:
            for column, least in COLUMNS.items():
                value = row.get(column)
                if column not in row:
                    raise InputError(f'"{self.path}": meta/episodes has no column "{column}"')
                if type(value) is not int or not least <= value < 2**40:
                    raise InputError(
                        f'"{self.path}": meta/episodes has the "{column}" {shown(value)}, expected '
                        f"a whole number, at least {least}"
                    )
        rows.sort(key=lambda row: row["episode_index"])
        first: dict[Path, int] = {}  # of every data file: its first row's index
        for row in rows:
            row["file"] = self._inside(
                self._info.data_path,
                chunk_index=row["data/chunk_index"],
                file_index=row["data/file_index"],
            )
            start = row["dataset_from_index"]
            first[row["file"]] = min(first.get(row["file"], start), start)
        for row in rows:
            row["start"] = row["dataset_from_index"] - first[row["file"]]
        return rows

    def _inside(self, pattern: str, **values: str | int) -> Path:
        """The path that a pattern such as "data/chunk-{chunk_index:03d}.parquet" leads to.

        Raises:
            InputError: it leads out of the folder, or has other fields.
        """

        def value(field: re.Match[str]) -> str:
            if field[1] not in values:
                raise InputError(f'"{self.path}": the path "{shown(pattern)}" has unknown fields')
            return str(values[field[1]]).zfill(int(field[2] or 0))

        path = Path(FIELD.sub(value, pattern))
        if path.is_absolute() or ".." in path.parts or "\0" in str(path):
            raise InputError(f'"{self.path}": "{shown(str(path))}" leads out of the folder')
        return self.path / path

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
            where = f'"{self.path}"'
            yield as_matrix(self._table(row, ["action"], where)["action"], where, "action")

    def _read_tasks(self) -> dict[int, str]:
        """Instructions by task_index; pandas stores them in a column named after its index."""
        path = self.path / "meta" / "tasks.parquet"
        if not path.is_file():
            return {}
        with open_parquet(path) as file:
            columns = file.read().to_pydict()
        texts = columns.get("task", columns.get("__index_level_0__"))
        pairs = list(zip(columns.get("task_index", ()), texts or (), strict=False))
        for index, text in pairs:
            if type(index) is not int or not _is_text(text):
                raise InputError(
                    f'"{path}": a task should be a number and text, received {shown(index)} and '
                    f"{shown(text)}"
                )
        return dict(pairs)

    def _pictures(self, column: Any, key: str, name: str) -> np.ndarray:
        """(T, height, width, 3) from encoded bytes, or from files that the column names."""
        from PIL import Image

        height, width = self._stored_shapes[key][:2]
        size = self.obs_shapes[key.removeprefix(OBSERVATION)]
        frames = []
        for cell in column.to_pylist():
            try:
                stored = cell["bytes"] or self._inside(cell["path"]).read_bytes()
                with Image.open(io.BytesIO(stored)) as image:
                    if image.size != (width, height):  # before it is decoded
                        raise InputError(
                            f'{name}: a picture of "{shown(key)}" is {image.size}, expected '
                            f"{(width, height)} (width, height), as meta/info.json says"
                        )
                    frames.append(resize(np.asarray(image.convert("RGB")), (size[0], size[1])))
            except InputError:
                raise
            except Exception as error:  # whatever a decoder raises of damaged bytes
                raise InputError(
                    f'{name}: cannot read a picture of "{shown(key)}": {shown(str(error))}'
                ) from error
        if not frames:
            raise InputError(f'{name} has no pictures of "{shown(key)}"')
        return np.stack(frames)


def _asked(videos: bool | Sequence[str], there: list[str]) -> list[str]:
    """The videos to decode; a name of no video may be that of a picture."""
    if isinstance(videos, bool):
        return there if videos else []
    return sorted(match_names(videos, there).values())


def _shape(feature: Feature) -> tuple[int, ...]:
    """Of one observation: images (height, width, channels), everything else one vector."""
    shape, names = feature.shape, feature.names
    if feature.dtype not in ("image", "video"):
        return (math.prod(shape),)
    if len(shape) != 3:
        raise InputError(f"a picture has three axes in meta/info.json, received {shown(shape)}")
    channels_first = isinstance(names, list) and str(names[:1]).startswith("['channel")
    return (*shape[1:], shape[0]) if channels_first else shape


def _statistic(value: Any, what: str) -> np.ndarray:
    """One number for each action dimension."""
    kind: Any = list[float] | list[list[float]] | float
    found = as_document(value, kind, what)
    try:
        return np.asarray(found, float).reshape(-1)
    except ValueError as error:
        raise InputError(f"{what} has rows of different lengths") from error


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _read_splits(saved: dict[str, Any], episodes: int) -> dict[str, np.ndarray]:
    """{"train": "0:50"} as indices."""
    found = {}
    for name, text in saved.items():
        first, _, last = str(text).partition(":")
        if DIGITS.fullmatch(first) and DIGITS.fullmatch(last):
            found[name] = np.arange(min(int(first), episodes), min(int(last), episodes))
    return found
