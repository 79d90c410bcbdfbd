"""Seeded malformed Minari datasets, by their folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("minari")

from gymnasium import spaces
from malformed import json_variants, judged
from malformed_hdf5 import FOREIGN, hdf5_variants
from minari_examples import POSE, create

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:minari")]


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with metadata.json and main_data.hdf5."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    create("toy/line-v0", POSE, spaces.Box(-2, 2, (1,), np.float32))
    return tmp_path / "toy" / "line-v0" / "data"


def spoilt_copy(good: Path, tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "spoilt", ignore_errors=True)
    return shutil.copytree(good, tmp_path / "spoilt")


def test_arrays(good: Path, tmp_path: Path) -> None:
    variants = hdf5_variants(good / "main_data.hdf5", tmp_path, seed=0, count=64)
    for variant in variants:
        folder = spoilt_copy(good, tmp_path)
        shutil.copyfile(variant.path, folder / "main_data.hdf5")
        harmful = variant.what.rpartition(": ")[2] in FOREIGN or None
        judged(["data", "info", str(folder)], harmful, tmp_path / "out", variant.what)


def test_metadata(good: Path, tmp_path: Path) -> None:
    document = json.loads((good / "metadata.json").read_text())
    for i, text in enumerate(json_variants(document, seed=0, count=40)):
        folder = spoilt_copy(good, tmp_path)
        (folder / "metadata.json").write_text(text)
        words = ["data", "info", str(folder)]
        judged(words, i < 8 or None, tmp_path / "out", text)
