"""Seeded malformed LeRobot folders."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow")

import pyarrow.parquet as pq
from lerobot_examples import png, write
from malformed import byte_variants, json_variants, judged

pytestmark = pytest.mark.slow

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
TASKS = "meta/tasks.parquet"
NEEDED = {
    DATA: ("observation.state", "action", "next.reward"),
    EPISODES: (
        *("episode_index", "length", "dataset_from_index"),
        *("data/chunk_index", "data/file_index"),
    ),
    TASKS: (),
}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "good")


def spoilt_copy(good: Path, tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "spoilt", ignore_errors=True)
    return shutil.copytree(good, tmp_path / "spoilt")


@pytest.mark.parametrize("name", ["info.json", "stats.json"])
def test_documents(name: str, good: Path, tmp_path: Path) -> None:
    document = json.loads((good / "meta" / name).read_text())
    for i, text in enumerate(json_variants(document, seed=0, count=40)):
        folder = spoilt_copy(good, tmp_path)
        (folder / "meta" / name).write_text(text)
        judged(["data", "info", str(folder)], i < 8 or None, tmp_path / "out", text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data_path", "../good/data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"),
        ("data_path", "/etc/passwd"),
        ("data_path", "{chunk_index.__class__}"),
        ("data_path", "data/{chunk_index:999999999}"),
        ("data_path", "x" * 5000),
        ("data_path", "\x00"),
        ("features", {"action": {"shape": [1]}, "observation.state": {"shape": "text"}}),
        ("features", {"action": {"shape": [1]}, "observation.state": {"shape": [2**62, 2**62]}}),
        ("features", {"action": {"shape": [1]}, "observation.state": {"shape": [7]}}),
        ("features", {"action": {"shape": [1]}, "observation.state": None}),
    ],
)
def test_paths_and_features(key: str, value: Any, good: Path, tmp_path: Path) -> None:
    path = good / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    judged(["data", "info", str(good)], True, tmp_path / "out", f"{key}: {value}")


def columns(count: int) -> Iterator[tuple[str, list[Any]]]:
    """What may stand in a column, by what it is."""
    yield "text", ["abc"] * count
    yield "nothing", [None] * count
    yield "nested", [[[1.0], [2.0]]] * (count - 1) + [[[1.0]]]
    yield "ragged", [[1.0] * (i % 3) for i in range(count)]
    yield "records", [{"a": 1}] * count
    yield "bytes", [b"\xff"] * count
    yield "not a number", [[float("nan")]] * count
    yield "infinite", [[1e300]] * count
    yield "negative", [-1] * count
    yield "2**62", [2**62] * count


@pytest.mark.parametrize("name", [DATA, EPISODES, TASKS])
def test_columns(name: str, good: Path, tmp_path: Path) -> None:
    table = pq.read_table(good / name)
    for column in table.column_names:
        for what, values in (*columns(len(table)), ("missing", [])):
            folder = spoilt_copy(good, tmp_path)
            kept = table.drop_columns([column])
            pq.write_table(
                kept.append_column(column, pa.array(values)) if values else kept, folder / name
            )
            harmful = column in NEEDED[name] or None
            if name == DATA and (what in ("negative", "2**62") or what == "missing"):
                harmful = None  # numbers, if odd ones; a reward may be missing
            judged(
                ["data", "info", str(folder)], harmful, tmp_path / "out", f"{name} {column} {what}"
            )


@pytest.mark.parametrize("name", [DATA, EPISODES])
def test_bytes(name: str, good: Path, tmp_path: Path) -> None:
    for data in byte_variants((good / name).read_bytes(), seed=0, count=24):
        folder = spoilt_copy(good, tmp_path)
        (folder / name).write_bytes(data)
        judged(["data", "info", str(folder)], None, tmp_path / "out", name)


def test_pictures(good: Path, tmp_path: Path) -> None:
    """A picture that is none, of another size, of a declared gigapixel, or of another place."""
    draw, whole = random.Random(0), png(3)["bytes"]
    huge = whole[:16] + (60_000).to_bytes(4, "big") * 2 + whole[24:]
    (tmp_path / "elsewhere.png").write_bytes(whole)
    cells = [
        {"bytes": b"abc", "path": None},
        {"bytes": whole[: draw.randrange(8, len(whole) - 20)], "path": None},
        {"bytes": huge, "path": None},
        {"bytes": None, "path": str(tmp_path / "elsewhere.png")},
        {"bytes": None, "path": "../elsewhere.png"},
        {"bytes": None, "path": None},
        {"bytes": None, "path": "x" * 5000},
    ]
    table = pq.read_table(good / DATA)
    for cell in cells:
        folder = spoilt_copy(good, tmp_path)
        at = table.column_names.index("observation.images.top")
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        rows = pa.array([cell] * len(table), kind)
        pq.write_table(table.set_column(at, table.column_names[at], rows), folder / DATA)
        judged(["data", "info", str(folder)], True, tmp_path / "out", str(cell)[:99])
