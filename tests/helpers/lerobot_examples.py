"""A LeRobot v3 folder, written by hand in the documented layout."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

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
