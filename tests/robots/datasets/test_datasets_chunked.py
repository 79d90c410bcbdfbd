"""Action chunks as single actions: hand-made episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_examples import SPEC, make_episodes, write_example

from offline.data.episodes import Episode
from offline.errors import InputError
from offline.spec import ActionSpec
from robots.datasets.chunked import chunk_episode, flatten_spec, write_chunked
from robots.datasets.robomimic_hdf5 import RobomimicHdf5


def counting(steps: int, *, success: bool) -> Episode:
    """Observation t is t, action t is (t, -t), reward t is t."""
    rows = np.arange(steps, dtype=np.float32)
    return Episode(
        obs={"state": np.arange(steps + 1, dtype=np.float32)[:, None]},
        actions=np.stack([rows, -rows], 1),
        rewards=rows,
        terminated=success,
        success=success,
    )


def test_offsets_of_a_failure_drop_what_fills_no_chunk() -> None:
    parts = list(chunk_episode(counting(7, success=False), 3))
    assert [p.obs["state"].ravel().tolist() for p in parts] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert parts[1].actions.tolist() == [[1, -1, 2, -2, 3, -3], [4, -4, 5, -5, 6, -6]]
    assert [p.rewards.tolist() for p in parts] == [[3, 12], [6, 15], [9]]
    assert [p.success for p in parts] == [False] * 3


def test_offsets_of_a_success_are_padded_with_the_last_action() -> None:
    parts = list(chunk_episode(counting(7, success=True), 3))
    assert [p.obs["state"].ravel().tolist() for p in parts] == [
        [0, 3, 6, 7],
        [1, 4, 7],
        [2, 5, 7],
    ]
    assert parts[0].actions[-1].tolist() == [6, -6, 6, -6, 6, -6]
    assert parts[2].actions[-1].tolist() == [5, -5, 6, -6, 6, -6]
    assert [p.rewards.sum() for p in parts] == [21, 21, 20]  # nothing counted twice
    assert all(p.terminated and p.success for p in parts)


def test_every_full_chunk_appears_once() -> None:
    episode = counting(11, success=False)
    found = [tuple(a[::2]) for p in chunk_episode(episode, 4) for a in p.actions]
    assert sorted(found) == [tuple(range(t, t + 4)) for t in range(8)]


def test_an_episode_shorter_than_a_chunk() -> None:
    assert list(chunk_episode(counting(2, success=False), 4)) == []
    assert [len(p) for p in chunk_episode(counting(2, success=True), 4)] == [1, 1]


def test_file_keeps_splits_and_the_original_spec(tmp_path: Path) -> None:
    read = write_example(tmp_path / "demos.hdf5")
    chunked = write_chunked(read, 4, tmp_path / "chunked.hdf5")
    assert chunked.spec.dim == 8
    assert chunked.spec.names[:3] == ("dx@0", "grip@0", "dx@1")
    assert chunked.meta["action_chunk"] == 4
    assert ActionSpec.from_dict(chunked.meta["unchunked_action_spec"]) == read.spec
    assert chunked.env == "toy/push"
    for name, indices in read.splits.items():
        sources = {chunked[int(i)].meta["source_episode"] for i in chunked.splits[name]}
        assert sources == set(indices.tolist())
    assert sum(len(chunked.splits[name]) for name in ("train", "valid")) == len(chunked)
    won = [i for i in chunked.splits["train"] if chunked[int(i)].success]
    assert chunked.splits["success"].tolist() == won  # a mask for filtered cloning
    original = next(make_episodes(1))
    np.testing.assert_array_equal(chunked[0].actions[0].reshape(4, 2), original.actions[:4])
    assert chunked[0].language == "open the drawer"


def test_flat_spec_normalises_like_the_original() -> None:
    spec = ActionSpec.from_bounds([-2, 0], [2, 1])
    flat, raw = flatten_spec(spec, 3), np.random.default_rng(0).uniform(0, 1, (5, 3, 2))
    np.testing.assert_allclose(flat.normalize(raw.reshape(5, 6)), spec.normalize(raw).reshape(5, 6))


def test_what_is_refused(tmp_path: Path) -> None:
    read = write_example(tmp_path / "demos.hdf5")
    with pytest.raises(InputError, match="at least 2 actions, got 1"):
        write_chunked(read, 1, tmp_path / "x.hdf5")
    write_chunked(read, 2, tmp_path / "chunked.hdf5")
    with pytest.raises(InputError, match="is flattened already"):
        write_chunked(RobomimicHdf5(tmp_path / "chunked.hdf5"), 2, tmp_path / "x.hdf5")
    assert SPEC.names == ("dx", "grip")
