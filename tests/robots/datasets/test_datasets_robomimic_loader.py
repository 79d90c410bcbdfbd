"""robomimic's own functions read what we write, plain and chunked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_examples import make_episodes, write_example

from robots.datasets.chunked import write_chunked

pytest.importorskip("robomimic")


@pytest.fixture(scope="module", autouse=True)
def robomimic() -> None:
    """robomimic imports torchvision, which a stand-in replaces where it is missing."""
    from robots.policies.robomimic import import_robomimic

    import_robomimic()
    import robomimic.utils.obs_utils as obs_utils

    obs_utils.initialize_obs_utils_with_obs_specs(
        [{"obs": {"low_dim": ["state"], "rgb": ["image"], "depth": [], "scan": []}}]
    )


def load(path: Path, mask: str | None = None) -> object:
    from robomimic.utils.dataset import SequenceDataset

    return SequenceDataset(
        hdf5_path=str(path),
        obs_keys=("state", "image"),
        dataset_keys=("actions", "rewards", "dones"),
        filter_by_attribute=mask,
    )


def test_metadata(tmp_path: Path) -> None:
    import robomimic.utils.file_utils as file_utils

    write_example(tmp_path / "demos.hdf5", image=True)
    path = str(tmp_path / "demos.hdf5")
    assert file_utils.get_env_metadata_from_dataset(path) == {
        "env_name": "toy/push",
        "type": 2,
        "env_kwargs": {},
    }
    shapes = file_utils.get_shape_metadata_from_dataset(path)
    assert shapes["ac_dim"] == 2
    assert dict(shapes["all_shapes"]) == {"image": [3, 8, 6], "state": [3]}
    assert shapes["use_images"]


def test_sequences(tmp_path: Path) -> None:
    read = write_example(tmp_path / "demos.hdf5", image=True)
    dataset = load(tmp_path / "demos.hdf5")
    episodes = list(make_episodes(6, image=True))
    assert len(dataset) == sum(map(len, episodes))
    item = dataset[5 + 3]  # the second episode's step 3
    np.testing.assert_array_equal(item["actions"][0], episodes[1].actions[3])
    np.testing.assert_array_equal(item["obs"]["state"][0], episodes[1].obs["state"][3])
    np.testing.assert_array_equal(item["next_obs"]["state"][0], episodes[1].obs["state"][4])
    np.testing.assert_allclose(
        np.asarray(item["obs"]["image"][0]), episodes[1].obs["image"][3], atol=1e-3
    )
    last = dataset[4]
    assert (last["rewards"].item(), last["dones"].item()) == (1, 1)
    valid = load(tmp_path / "demos.hdf5", "valid")
    assert len(valid) == read.lengths[read.splits["valid"]].sum()


def test_chunked_sequences(tmp_path: Path) -> None:
    read = write_example(tmp_path / "demos.hdf5", image=True)
    write_chunked(read, 4, tmp_path / "chunked.hdf5")
    dataset = load(tmp_path / "chunked.hdf5", "train")
    first = read[int(read.splits["train"][0])]
    np.testing.assert_array_equal(dataset[0]["actions"][0], first.actions[:4].reshape(-1))
