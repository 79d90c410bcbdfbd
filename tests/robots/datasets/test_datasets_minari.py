"""Minari datasets, by name and by folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

minari = pytest.importorskip("minari")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

from gymnasium import spaces
from minari_examples import POSE, create

from offline.errors import InputError
from robots.datasets.open import open_dataset


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def test_box_observations(storage: Path) -> None:
    create("toy/line-v0", POSE, spaces.Box(-2, 2, (1,), np.float32))
    read = open_dataset("minari:toy/line-v0")
    assert read.lengths.tolist() == [3, 4]
    assert read.obs_shapes == {"state": (2,)}
    assert (read.spec.low, read.spec.high) == ((-2,), (2,))
    assert read.spec.mean == pytest.approx((0,))
    assert read[1].obs["state"][:, 1].tolist() == [10, 11, 12, 13, 14]
    assert [e.success for e in read] == [False, True]
    assert [e.terminated for e in read] == [True, False]


def test_nested_observations_and_infinite_bounds(storage: Path) -> None:
    observation = spaces.Dict({"pose": POSE, "goal": spaces.Dict({"cube": POSE})})
    create("toy/reach-v0", observation, spaces.Box(-np.inf, np.inf, (1,), np.float32), high=3)
    for path in ("minari:toy/reach-v0", storage / "toy" / "reach-v0"):
        read = open_dataset(path)
        assert read.obs_shapes == {"goal.cube": (2,), "pose": (2,)}
        np.testing.assert_array_equal(read[0].obs["goal.cube"], read[0].obs["pose"] + 1)
        assert (read.spec.low, read.spec.high) == ((-3,), (3,))


def test_what_is_refused(storage: Path) -> None:
    create("toy/line-v0", POSE, spaces.Box(-2, 2, (1,), np.float32))
    with pytest.raises(InputError, match='no local dataset "toy/lime-v0".*Did you mean "toy/line'):
        open_dataset("minari:toy/lime-v0")
    file = storage / "toy" / "line-v0" / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match=r"main_data.hdf5\" was cut off"):
        open_dataset("minari:toy/line-v0")


def test_metadata_that_names_code_runs_none(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minari makes the environment where metadata.json lacks a space."""
    create("toy/line-v0", POSE, spaces.Box(-2, 2, (1,), np.float32))
    (storage / "canary_module.py").write_text("open(__file__ + '.ran', 'w').close()")
    monkeypatch.syspath_prepend(storage)
    path = storage / "toy" / "line-v0" / "data" / "metadata.json"
    document = json.loads(path.read_text())
    del document["action_space"]
    entry = {"id": "toy/line-v0", "entry_point": "canary_module:make", "reward_threshold": None}
    path.write_text(json.dumps(document | {"env_spec": json.dumps(entry)}))
    with pytest.raises(InputError, match='has no "action_space"'):
        open_dataset(path.parent)
    assert not (storage / "canary_module.py.ran").exists()
    path.write_text("[" * 1000 + "]" * 1000)
    with pytest.raises(InputError, match="recursion limit"):
        open_dataset(path.parent)
