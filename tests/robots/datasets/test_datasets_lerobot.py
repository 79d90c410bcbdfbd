"""LeRobot v3 folders, written here by hand in the documented layout."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")

import pyarrow.parquet as pq
from PIL import Image

from offline.errors import InputError
from robots.datasets.lerobot import LeRobotEpisodes
from robots.datasets.open import open_dataset

LENGTHS = (3, 5, 4)
TASKS = ("push the cube", "open the drawer")
FPS = 10
PATTERN = "chunk-{chunk_index:03d}/file-{file_index:03d}"


def png(value: int) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder: Path, *, stats: bool = True, video: bool = False) -> Path:
    """Three episodes, the first two in one data file; row i has state (i, 2 i) and action i/10."""
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    features = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "observation.images.top": {
            "dtype": "image",
            "shape": [4, 6, 3],
            "names": ["height", "width", "channels"],
        },
        "action": {"dtype": "float32", "shape": [1], "names": {"motors": ["push"]}},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
    }
    if video:
        features["observation.images.side"] = {"dtype": "video", "shape": [32, 48, 3]}
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "features": features,
        "total_episodes": 3,
        "total_frames": sum(LENGTHS),
        "data_path": f"data/{PATTERN}.parquet",
        "video_path": f"videos/{{video_key}}/{PATTERN}.mp4",
        "splits": {"train": "0:2", "valid": "2:3"},
    }
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    if stats:
        numbers = {"min": [0], "max": [1.1], "mean": [0.55], "std": [0.3], "q01": [0], "q99": [1]}
        (folder / "meta" / "stats.json").write_text(json.dumps({"action": numbers}))
    tasks = {"task_index": [0, 1], "__index_level_0__": list(TASKS)}
    pq.write_table(pa.table(tasks), folder / "meta" / "tasks.parquet")

    episodes, first = [], 0
    frames: dict[int, list[dict[str, object]]] = {0: [], 1: []}
    for index, length in enumerate(LENGTHS):
        episodes.append(
            {
                "episode_index": index,
                "tasks": [TASKS[index % 2]],
                "length": length,
                "dataset_from_index": first,
                "dataset_to_index": first + length,
                "data/chunk_index": 0,
                "data/file_index": index // 2,
                "videos/observation.images.side/chunk_index": 0,
                "videos/observation.images.side/file_index": 0,
                "videos/observation.images.side/from_timestamp": first / FPS,
            }
        )
        for step in range(length):
            row = first + step
            frames[index // 2].append(
                {
                    "observation.state": [float(row), 2.0 * row],
                    "observation.images.top": png(row),
                    "action": [row / 10],
                    "next.reward": float(step == length - 1),
                    "next.done": step == length - 1,
                    "next.success": index != 1 and step == length - 1,
                    "task_index": index % 2,
                    "episode_index": index,
                    "index": row,
                }
            )
        first += length
    path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    pq.write_table(pa.Table.from_pylist(episodes), path)
    for file, rows in frames.items():
        path = folder / "data" / "chunk-000" / f"file-{file:03d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    return folder


def test_episodes(tmp_path: Path) -> None:
    read = open_dataset(write(tmp_path))
    assert read.lengths.tolist() == list(LENGTHS)
    assert read.obs_shapes == {"images.top": (4, 6, 3), "state": (2,)}
    assert read[1].obs["state"][:, 0].tolist() == [3, 4, 5, 6, 7, 7]
    assert read[1].obs["images.top"][:, 0, 0, 0].tolist() == [3, 4, 5, 6, 7, 7]
    assert read[2].actions.ravel() == pytest.approx([0.8, 0.9, 1.0, 1.1])
    assert [e.success for e in read] == [True, False, True]
    assert all(e.terminated for e in read)
    assert [e.language for e in read] == [TASKS[0], TASKS[1], TASKS[0]]
    assert read[0].rewards.tolist() == [0, 0, 1]
    assert {k: v.tolist() for k, v in read.splits.items()} == {"train": [0, 1], "valid": [2]}


def test_spec_from_stats_or_from_the_data(tmp_path: Path) -> None:
    spec = open_dataset(write(tmp_path / "with")).spec
    assert (spec.low, spec.high, spec.mean, spec.p99) == ((0,), (1.1,), (0.55,), (1,))
    assert spec.names == ("push",)
    spec = open_dataset(write(tmp_path / "without", stats=False)).spec
    assert spec.high == pytest.approx((1.1,))
    assert spec.mean == pytest.approx((0.55,))
    assert spec.std == pytest.approx((np.std(np.arange(12) / 10),))
    assert spec.names == ("push",)


def test_videos_are_skipped_with_one_line_or_decoded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    write(tmp_path, video=True)
    assert "images.side" not in open_dataset(tmp_path).obs_shapes
    assert len(caplog.messages) == 1 and "images.side" in caplog.messages[0]

    folder = tmp_path / "videos" / "observation.images.side" / "chunk-000"
    folder.mkdir(parents=True)
    with imageio.get_writer(folder / "file-000.mp4", fps=FPS, macro_block_size=16) as video:
        for row in range(sum(LENGTHS)):
            video.append_data(np.full((32, 48, 3), 20 * row, np.uint8))
    read = LeRobotEpisodes(tmp_path, videos=True)
    frames = read[1].obs["images.side"]
    assert frames.shape == (6, 32, 48, 3)
    assert frames.mean((1, 2, 3)) == pytest.approx([60, 80, 100, 120, 140, 140], abs=6)


def test_what_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    data = tmp_path / "data" / "chunk-000" / "file-000.parquet"
    content = data.read_bytes()
    data.write_bytes(content[:200])
    with pytest.raises(InputError, match="cannot read .*file-000.parquet"):
        open_dataset(tmp_path)[0]
    table = pq.read_table(io.BytesIO(content))
    pq.write_table(table.slice(0, 6), data)
    with pytest.raises(InputError, match="episode 1 has 3 rows of data, its length is 5"):
        open_dataset(tmp_path)[1]
    info = json.loads((tmp_path / "meta" / "info.json").read_text())
    info["codebase_version"] = "v2.1"
    (tmp_path / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="version v2.1, expected v3"):
        open_dataset(tmp_path)
