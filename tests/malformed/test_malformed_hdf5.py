"""Seeded malformed HDF5 datasets through every command that reads one."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from dataset_examples import write_example
from malformed import judged
from malformed_hdf5 import hdf5_variants

pytestmark = pytest.mark.slow

SMALL = (
    *("--steps", "2", "--batch-size", "4", "--log-every", "1", "--action-chunk", "2"),
    *("--device", "cpu", "--wandb", "disabled"),
)


def commands(path: Path, output: Path) -> list[list[str]]:
    """Each command that reads a dataset, as small as can be."""
    clone = ["clone", "--data", str(path), "--output", str(output / "clone"), *SMALL]
    value = ["value", "--data", str(path), "--output", str(output / "value"), *SMALL]
    return [
        ["data", "info", str(path)],
        [*clone, "--features", "8", "--width", "8"],
        ["data", "chunk", str(path), "--output", str(output / "c.hdf5"), "--action-chunk", "2"],
        [*value, "--hidden", "8"],
    ]


def write_d4rl(path: Path) -> None:
    """Two episodes of ten steps."""
    random, ends = np.random.default_rng(0), np.arange(20) % 10 == 9
    with h5py.File(path, "w") as file:
        file["observations"] = random.normal(size=(20, 3)).astype(np.float32)
        file["next_observations"] = random.normal(size=(20, 3)).astype(np.float32)
        file["actions"] = random.uniform(-1, 1, (20, 2)).astype(np.float32)
        file["rewards"] = random.normal(size=20).astype(np.float32)
        file["terminals"], file["timeouts"] = ends & (np.arange(20) < 10), ends
        file["infos/success"] = ends
        file.attrs["env_id"] = "toy/push"


WRITE = {"robomimic": lambda path: write_example(path, 4, image=True), "d4rl": write_d4rl}


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("kind", WRITE)
def test_spoilt_leaves(kind: str, turn: int, tmp_path: Path) -> None:
    good, output = tmp_path / "good.hdf5", tmp_path / "out"
    WRITE[kind](good)
    for words in commands(good, output):
        judged(words, False, output, "as it was")
    for i, variant in enumerate(hdf5_variants(good, tmp_path, seed=turn, count=70)):
        each = commands(variant.path, output)
        for words in (each[0], each[1 + i % 3]):
            shutil.rmtree(output, ignore_errors=True)
            judged(words, variant.harmful, output, variant.what)


def test_torn_files(tmp_path: Path) -> None:
    """Not with bytes changed: the HDF5 library itself crashes on some of those."""
    good, output = tmp_path / "good.hdf5", tmp_path / "out"
    write_example(good, 3)
    whole, draw = good.read_bytes(), random.Random(0)
    for _ in range(30):
        kept = draw.randrange(len(whole))
        (tmp_path / "spoilt.hdf5").write_bytes(whole[:kept])
        judged(commands(tmp_path / "spoilt.hdf5", output)[0], True, output, f"{kept} bytes")
