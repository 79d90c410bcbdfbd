"""`genpol data info` and `genpol data chunk`, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from genpol.cli import main
from offline.data.episodes import Episode
from offline.spec import ActionSpec
from robots.datasets.robomimic_hdf5 import write_hdf5

SPEC = ActionSpec.from_bounds([-1, -1], [1, 1], names=("dx", "grip"))


def write(path: Path, *, outcomes: tuple[bool, ...] = (True, False, True)) -> Path:
    """Episodes of 6 steps, all by "clean" but the last."""
    random = np.random.default_rng(0)
    episodes = [
        Episode(
            obs={"state": random.normal(size=(7, 3)).astype(np.float32)},
            actions=random.uniform(-1, 1, (6, 2)).astype(np.float32),
            rewards=np.full(6, float(success), np.float32),
            terminated=success,
            success=success,
            language="push",
            meta={"operator": "clean" if i < len(outcomes) - 1 else "sloppy"},
        )
        for i, success in enumerate(outcomes)
    ]
    write_hdf5(path, episodes, spec=SPEC, env="toy/push")
    return path


def test_info_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "demos.hdf5")
    assert main(["data", "info", str(path)]) == 0
    printed = capsys.readouterr().out
    for piece in ("toy/push", "2 of 3 (67%)", "sloppy      1 of 1", "dx", "push", "train 2"):
        assert piece in printed
    assert main(["data", "info", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["episodes"], found["steps"], found["lengths"]["max"]) == (3, 18, 6)
    assert found["observations"] == {"state": {"shape": [3], "dtype": "float32"}}
    assert found["by_operator"]["clean"] == {"yes": 1, "no": 1, "unknown": 0}
    assert found["rewards"] == {"min": 0, "max": 1, "mean_return": 4}
    assert found["problems"] == found["warnings"] == []
    with h5py.File(path) as file:
        assert found["content_hash"] == file["data"].attrs["content_hash"]


def test_warnings_do_not_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "demos.hdf5", outcomes=(False, False))
    assert main(["data", "info", str(path)]) == 0
    assert "warning: none of 2 episodes succeeded" in capsys.readouterr().out


def spoil(change: Callable[[h5py.File], None], path: Path) -> Path:
    write(path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def shorten(file: h5py.File) -> None:
    rewards = file["data/demo_1/rewards"][:-1]
    del file["data/demo_1/rewards"]
    file["data/demo_1/rewards"] = rewards


def enlarge(file: h5py.File) -> None:
    file["data/demo_1/actions"][3, 1] = 25.0


def alter(file: h5py.File) -> None:
    file["data/demo_1/obs/state"][3, 1] = 25.0


def put_nan(file: h5py.File) -> None:
    file["data/demo_0/obs/state"][3, 1] = np.nan
    file["data/demo_2/obs/state"][3, 1] = np.nan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shorten, "demo_1 has 6 actions but 5 rewards"),
        (enlarge, "out of range: dimension 1 (grip) has 25, its bounds are [-1, 1]"),
        (alter, "does not match the file's content_hash"),
        (put_nan, 'demo_0: "state" has NaN or infinite values (1 more)'),
    ],
)
def test_invalid_data_exits_2_with_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[h5py.File], None],
    says: str,
) -> None:
    path = spoil(change, tmp_path / "demos.hdf5")
    assert main(["data", "info", str(path)]) == 2
    printed = capsys.readouterr()
    assert "problem: " in printed.out
    assert printed.err.count("\n") == 1 and "demos.hdf5" in printed.err
    assert says in printed.err


def test_truncated_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "demos.hdf5")
    path.write_bytes(path.read_bytes()[:2000])
    for command in (["info", str(path)], ["chunk", str(path), "--output", str(tmp_path / "x")]):
        assert main(["data", *command]) == 2
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1 and "truncated HDF5" in printed.err
        assert not printed.out


def test_chunk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = write(tmp_path / "demos.hdf5"), tmp_path / "chunked.hdf5"
    command = ["data", "chunk", str(path), "--action-chunk", "3", "--output", str(output)]
    assert main(command) == 0
    assert "3 episodes became 9, 18 steps" in capsys.readouterr().out
    assert main(["data", "info", str(output)]) == 0
    assert "each 3 actions flattened" in capsys.readouterr().out
    assert main(command) == 2
    assert "exists; pass another --output, or --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
