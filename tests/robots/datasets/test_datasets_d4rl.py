"""D4RL-style HDF5: where episodes end, and what is refused."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from offline.errors import InputError
from robots.datasets.open import open_dataset


def write(path: Path, **arrays: np.ndarray) -> Path:
    """Ten rows whose observation is (row, -row); rows can be replaced or added."""
    rows = np.arange(10.0)
    content = {
        "observations": np.stack([rows, -rows], 1),
        "actions": np.stack([rows / 10, rows / 20, rows * 0], 1),
        "rewards": rows,
    }
    with h5py.File(path, "w") as file:
        for name, values in (content | arrays).items():
            if values is not None:
                file[name] = values
    return path


def flags(*rows: int) -> np.ndarray:
    found = np.zeros(10, bool)
    found[list(rows)] = True
    return found


def test_terminals_and_timeouts_end_episodes(tmp_path: Path) -> None:
    following = np.stack([np.arange(10.0) + 100, np.zeros(10)], 1)
    path = write(
        tmp_path / "maze.hdf5",
        terminals=flags(2),
        timeouts=flags(6),
        next_observations=following,
        **{"infos/success": flags(1)},
    )
    read = open_dataset(path)
    assert read.lengths.tolist() == [3, 4, 3]  # the last one was cut off
    assert read.obs_shapes == {"state": (2,)}
    assert [e.terminated for e in read] == [True, False, False]
    assert [e.success for e in read] == [True, False, False]
    assert read[1].obs["state"][:, 0].tolist() == [3, 4, 5, 6, 106]
    assert read[1].rewards.tolist() == [3, 4, 5, 6]
    assert read.spec.high == (1, 1, 1)
    assert read.spec.mean == pytest.approx((0.45, 0.225, 0))


def test_without_next_observations_the_last_is_repeated(tmp_path: Path) -> None:
    read = open_dataset(write(tmp_path / "old.hdf5", terminals=flags(3, 9)))
    assert read[0].obs["state"][:, 0].tolist() == [0, 1, 2, 3, 3]
    assert "repeated" in read[0].meta["last_obs"]
    assert read[0].success is None


def test_jumps_end_episodes_where_timeouts_are_missing(tmp_path: Path) -> None:
    following = np.stack([np.arange(10.0) + 1, -np.arange(10.0) - 1], 1)
    following[4] = 50
    path = write(tmp_path / "old.hdf5", terminals=flags(7), next_observations=following)
    assert open_dataset(path).lengths.tolist() == [5, 3, 2]


def test_dictionary_observations(tmp_path: Path) -> None:
    path = write(tmp_path / "kitchen.hdf5", observations=None, terminals=flags(9))
    with h5py.File(path, "r+") as file:
        file["observations/arm"] = np.zeros((10, 4))
        file["observations/image"] = np.zeros((10, 6, 5, 3), np.uint8)
    read = open_dataset(path)
    assert read.obs_shapes == {"arm": (4,), "image": (6, 5, 3)}
    assert read[0].obs["image"].dtype == np.uint8


def test_mismatched_lengths_and_nan(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bad.hdf5\" has 10 actions but 9 rewards"):
        open_dataset(write(tmp_path / "bad.hdf5", rewards=np.zeros(9)))
    actions = np.zeros((10, 3))
    actions[6] = np.nan
    read = open_dataset(write(tmp_path / "nan.hdf5", actions=actions, terminals=flags(4)))
    read[0]
    with pytest.raises(InputError, match=r"nan.hdf5\" episode 1: \"actions\" has NaN"):
        read[1]
