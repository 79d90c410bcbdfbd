"""LeRobot v3 folders, written here by hand in the documented layout."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")

import pyarrow.parquet as pq
from lerobot_examples import FPS, LENGTHS, TASKS, write

from offline.errors import InputError
from robots.datasets.lerobot import LeRobotEpisodes
from robots.datasets.open import open_dataset


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
    assert len(caplog.messages) == 1 and "--image-keys images.side" in caplog.messages[0]

    folder = tmp_path / "videos" / "observation.images.side" / "chunk-000"
    folder.mkdir(parents=True)
    with imageio.get_writer(folder / "file-000.mp4", fps=FPS, macro_block_size=16) as video:
        for row in range(sum(LENGTHS)):
            video.append_data(np.full((32, 48, 3), 20 * row, np.uint8))
    read = LeRobotEpisodes(tmp_path, videos=True)
    frames = read[1].obs["images.side"]
    assert frames.shape == (6, 32, 48, 3)
    assert frames.mean((1, 2, 3)) == pytest.approx([60, 80, 100, 120, 140, 140], abs=6)

    small = open_dataset(tmp_path, images=["side"], image_size=8)  # by a part of its name
    assert small.obs_shapes == {"images.side": (8, 8, 3), "images.top": (8, 8, 3), "state": (2,)}
    seen = small[1].obs
    assert seen["images.side"].mean((1, 2, 3)) == pytest.approx(frames.mean((1, 2, 3)), abs=1)
    assert seen["images.top"].shape == (6, 8, 8, 3) and seen["images.top"][:, 0, 0, 0].max() == 7
    video = folder / "file-000.mp4"
    video.write_bytes(video.read_bytes()[:300])
    with pytest.raises(InputError, match='episode 1: cannot decode ".*file-000.mp4"'):
        small[1]
    video.unlink()
    with pytest.raises(InputError, match="episode 1: there is no video"):
        small[1]


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


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("data_path", "../x/{chunk_index}", "leads out of the folder"),
        ("data_path", "/etc/passwd", "leads out of the folder"),
        ("data_path", "{chunk_index.__class__}/{other}", "unknown fields"),
        ("features", [], '"features" should be an object'),
        ("features", {"action": {"shape": "text"}}, "features.action.shape"),
        ("codebase_version", None, '"codebase_version" should be a string, received null'),
    ],
)
def test_info_is_held_to_its_schema(tmp_path: Path, key: str, value: object, says: str) -> None:
    path = write(tmp_path) / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match=says):
        open_dataset(tmp_path)
