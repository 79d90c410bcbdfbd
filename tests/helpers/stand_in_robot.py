"""A robot of a few lines with a camera, its demonstrations, and the server of its policy."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from toy_reach import LIMIT, SPEC, ToyReach, demonstration

SIDE = 24  # pixels
FPS = 10
CHUNK = 6  # actions of an answer
TASK = "go to the cross"


def picture(state: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE, 3): the goal as a red column, the robot as a white square."""
    canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
    x, y, goal = ((np.asarray(state, float) + 2) / 4 * (SIDE - 4)).round().astype(int)
    canvas[:, goal : goal + 4, 0] = 120
    canvas[y : y + 4, x : x + 4] = 255
    return canvas


class Robot:
    """What the page calls my_robot.Robot: it stops by itself where it has succeeded."""

    truth: list[bool] = []
    """Of every episode that has ended, whether it succeeded."""

    def __init__(self) -> None:
        self._env, self._steps, self._success = ToyReach(), 0, False
        self._state: np.ndarray = np.zeros(3)

    def reset(self) -> None:
        self._state = self._env.reset(seed=100 + len(Robot.truth))[0]
        self._steps, self._success = 0, False
        Robot.truth.append(False)

    def observe(self) -> dict[str, object]:
        state = self._state.astype(np.float32)
        return {"observation/state": state, "images": {"top": picture(state)}, "prompt": TASK}

    def act(self, action: np.ndarray) -> None:
        self._state, _, _, _, info = self._env.step(action)
        self._steps += 1
        self._success = Robot.truth[-1] = bool(info["success"])

    def stopped(self) -> bool:
        return self._success or self._steps >= LIMIT


class Hesitant:
    """A policy of somebody else's: it goes to the cross in some draws, and elsewhere in others."""

    spec = SPEC.with_chunk(CHUNK)
    obs_shapes = {"state": (3,)}
    clips = True

    def reset(self) -> None: ...

    def commit(self, act: torch.Tensor) -> None: ...

    def keep(self, rows: torch.Tensor) -> None: ...

    def sample(self, obs, n, generator):
        state = obs["state"]
        to = torch.stack([state[:, 2] - state[:, 0], -state[:, 1]], -1)[:, None, None]
        noise = torch.randn(len(state), n, 1, 2, generator=generator)
        return (0.5 * to.sign() + 0.8 * noise).expand(-1, -1, CHUNK, -1).clamp(-1, 1)


def write_demos(folder: Path, count: int = 8) -> Path:
    """Demonstrations as LeRobot writes them, all successes, which they do not say."""
    every = [demonstration(seed) for seed in range(4 * count)]
    every = [one for one in every if one.success][:count]
    for part in ("meta/episodes/chunk-000", "data/chunk-000"):
        (folder / part).mkdir(parents=True)
    pattern = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    info = {
        "codebase_version": "v3.0", "fps": FPS, "data_path": f"data/{pattern}.parquet",
        "features": {
            "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "goal"]},
            "observation.images.top": {"dtype": "image", "shape": [SIDE, SIDE, 3]},
            "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        },
    }  # fmt: skip
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    pq.write_table(
        pa.table({"task_index": [0], "__index_level_0__": [TASK]}),
        folder / "meta" / "tasks.parquet",
    )
    rows, episodes = [], []
    for index, one in enumerate(every):
        about = {"episode_index": index, "tasks": [TASK], "length": len(one)}
        about |= {"dataset_from_index": len(rows), "data/chunk_index": 0, "data/file_index": 0}
        episodes.append(about)
        for step, action in enumerate(one.actions):
            png = io.BytesIO()
            Image.fromarray(picture(one.obs["state"][step])).save(png, "PNG")
            rows.append(
                {
                    "observation.state": one.obs["state"][step].tolist(),
                    "observation.images.top": {"bytes": png.getvalue(), "path": None},
                    "action": action.tolist(), "task_index": 0, "episode_index": index,
                    "index": len(rows),
                }
            )  # fmt: skip
    pq.write_table(
        pa.Table.from_pylist(episodes), folder / "meta/episodes/chunk-000/file-000.parquet"
    )
    pq.write_table(pa.Table.from_pylist(rows), folder / "data/chunk-000/file-000.parquet")
    return folder
