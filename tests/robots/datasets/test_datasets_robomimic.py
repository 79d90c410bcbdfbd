"""robomimic-format HDF5: round trip, other people's files, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from dataset_examples import SPEC, make_episodes, same, write_example

from offline.data.episodes import Episode
from offline.errors import InputError
from robots.datasets.open import open_dataset
from robots.datasets.robomimic_hdf5 import RobomimicHdf5, write_hdf5


def test_round_trip(tmp_path: Path) -> None:
    written = list(make_episodes(6, image=True))
    write_example(tmp_path / "demos.hdf5", image=True)
    read = open_dataset(tmp_path / "demos.hdf5")
    assert len(read) == 6
    assert read.lengths.tolist() == [5, 6, 7, 8, 9, 10]
    assert read.obs_shapes == {"image": (8, 6, 3), "state": (3,)}
    assert read.env == "toy/push"
    for before, after in zip(written, read, strict=True):
        same(before, after)
        assert (before.success, before.language) == (after.success, after.language)
        assert before.meta == after.meta


def test_spec_has_the_datas_statistics(tmp_path: Path) -> None:
    spec = write_example(tmp_path / "demos.hdf5").spec
    actions = np.concatenate([e.actions for e in make_episodes(6)])
    np.testing.assert_allclose(spec.mean, actions.mean(0), atol=1e-6)
    np.testing.assert_allclose(spec.std, actions.std(0), atol=1e-6)
    np.testing.assert_allclose(spec.p01, np.percentile(actions, 1, axis=0), atol=1e-6)
    assert (spec.low, spec.high, spec.names, spec.gripper_open) == (
        (-1, -1),
        (1, 1),
        ("dx", "grip"),
        -1,
    )


def test_splits_are_a_partition_and_can_be_opened_alone(tmp_path: Path) -> None:
    read = write_example(tmp_path / "demos.hdf5")
    both = np.concatenate([read.splits["train"], read.splits["valid"]])
    assert sorted(both.tolist()) == list(range(6))
    assert len(read.splits["valid"]) == 2
    valid = RobomimicHdf5(tmp_path / "demos.hdf5", split="valid")
    assert valid.lengths.tolist() == [5 + i for i in read.splits["valid"]]
    assert valid.splits["valid"].tolist() == [0, 1]
    same(valid[1], read[int(read.splits["valid"][1])])
    with pytest.raises(InputError, match='Did you mean "valid"'):
        RobomimicHdf5(tmp_path / "demos.hdf5", split="vald")


def test_more_than_ten_demonstrations_keep_their_order(tmp_path: Path) -> None:
    read = write_example(tmp_path / "demos.hdf5", 12)  # demo_10 sorts before demo_2 as text
    assert read.lengths.tolist() == list(range(5, 17))


def foreign(path: Path, *, rewards: object = None, **attributes: object) -> None:
    """A file without any of our attributes: actions within [-1, 1], no next_obs."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, value in attributes.items():
            data.attrs[name] = value
        for i in range(2):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = 4
            demo["actions"] = np.full((4, 3), 0.5 - i)
            demo["rewards"] = np.array([0, 0, 0, i]) if rewards is None else rewards
            demo["dones"] = np.array([0, 0, 0, 1])
            demo["obs/eef"] = np.arange(8.0).reshape(4, 2)


@pytest.mark.parametrize("spelling", ["env_args", "env_meta"])
def test_foreign_file(tmp_path: Path, spelling: str) -> None:
    env_args = {"env_name": "Lift", "type": 1, "env_kwargs": {"robots": "Panda"}}
    foreign(tmp_path / "lift.hdf5", **{spelling: json.dumps(env_args)})
    read = open_dataset(tmp_path / "lift.hdf5")
    assert (read.env, read.meta["env_args"]) == ("Lift", env_args)
    assert (read.spec.low, read.spec.high) == ((-1, -1, -1), (1, 1, 1))
    np.testing.assert_allclose(read.spec.mean, 0)
    assert [e.success for e in read] == [False, True]
    assert read[0].obs["eef"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [6, 7]]
    assert "repeated" in read[0].meta["last_obs"]


def test_robosuites_own_attributes(tmp_path: Path) -> None:
    foreign(tmp_path / "demo.hdf5", env="Lift", env_info=json.dumps({"robots": "Panda"}))
    read = open_dataset(tmp_path / "demo.hdf5")
    assert read.env == "Lift"
    assert read.meta["env_args"]["env_kwargs"] == {"robots": "Panda"}


def test_dense_rewards_say_nothing_of_success(tmp_path: Path) -> None:
    foreign(tmp_path / "dense.hdf5", rewards=np.array([0.1, 0.3, 0.2, 0.9]))
    assert open_dataset(tmp_path / "dense.hdf5")[0].success is None


def test_unknown_success_stays_unknown(tmp_path: Path) -> None:
    episode = Episode({"state": np.zeros((3, 1))}, np.zeros((2, 2)), np.zeros(2), False)
    read = write_hdf5(tmp_path / "x.hdf5", [episode], spec=SPEC, env=None)
    assert read[0].success is None
    assert read.env is None


def test_wide_actions_are_bounded_by_their_extremes(tmp_path: Path) -> None:
    foreign(tmp_path / "wide.hdf5")
    with h5py.File(tmp_path / "wide.hdf5", "r+") as file:
        file["data/demo_0/actions"][0, 1] = 7
    read = open_dataset(tmp_path / "wide.hdf5")
    assert (read.spec.low, read.spec.high) == ((-0.5, -0.5, -0.5), (0.5, 7, 0.5))


# -- writing


def test_episodes_are_streamed(tmp_path: Path) -> None:
    def large() -> Iterator[Episode]:
        for _ in range(30):  # of 0.4 MB
            yield Episode(
                obs={"state": np.zeros((1001, 100), np.float32)},
                actions=np.zeros((1000, 2), np.float32),
                rewards=np.zeros(1000, np.float32),
                terminated=False,
            )

    tracemalloc.start()
    read = write_hdf5(tmp_path / "large.hdf5", large(), spec=SPEC, env="toy/push")
    for index in range(len(read)):
        read[index]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "large.hdf5").stat().st_size > 20e6
    assert peak < 4e6


def test_an_error_on_the_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "demos.hdf5"
    write_example(path)
    before = path.read_bytes()

    def breaking() -> Iterator[Episode]:
        yield from make_episodes(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_hdf5(path, breaking(), spec=SPEC, env="toy/push")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["demos.hdf5"]


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "demos.hdf5"
    with pytest.raises(InputError, match="no episodes"):
        write_hdf5(path, [], spec=SPEC, env=None)
    first, second = make_episodes(2)
    del second.obs["state"]
    second.obs["pose"] = np.zeros((7, 3), np.float32)
    with pytest.raises(InputError, match="episode 1 has observations .*pose"):
        write_hdf5(path, [first, second], spec=SPEC, env=None)
    assert not list(tmp_path.iterdir())


def test_content_hash_depends_on_content_only(tmp_path: Path) -> None:
    one = write_example(tmp_path / "one.hdf5").meta["content_hash"]
    two = write_example(tmp_path / "two.hdf5").meta["content_hash"]
    other = write_hdf5(tmp_path / "3.hdf5", make_episodes(6, seed=1), spec=SPEC, env="toy/push")
    assert one == two != other.meta["content_hash"]


# -- files that cannot be used


def edit(path: Path, change: Callable[[h5py.File], None]) -> RobomimicHdf5:
    write_example(path)
    with h5py.File(path, "r+") as file:
        change(file)
    return RobomimicHdf5(path)


def shorten(file: h5py.File, key: str) -> None:
    values = file[key][:-1]
    del file[key]
    file[key] = values


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("data/demo_2/actions", "has 6 actions, its num_samples is 7"),
        ("data/demo_2/rewards", "has 7 actions but 6 rewards"),
        ("data/demo_2/obs/state", 'obs "state" has 6 entries for 7 actions'),
        ("data/demo_2/next_obs/state", 'next_obs "state" has 6 entries for 7 actions'),
    ],
)
def test_mismatched_lengths(tmp_path: Path, key: str, says: str) -> None:
    read = edit(tmp_path / "demos.hdf5", lambda file: shorten(file, key))
    read[1]
    with pytest.raises(InputError) as caught:
        read[2]
    assert "demos.hdf5" in str(caught.value) and "demo_2" in str(caught.value)
    assert says in str(caught.value)


def test_nan_and_missing(tmp_path: Path) -> None:
    def spoil(file: h5py.File) -> None:
        file["data/demo_0/obs/state"][2, 1] = np.nan
        file["data/demo_1/actions"][2, 1] = np.inf
        del file["data/demo_2/obs"]
        del file["data/demo_3/actions"]

    read = edit(tmp_path / "demos.hdf5", spoil)
    for index, says in enumerate(
        ['"state" has NaN', "NaN or infinite", "no observations", "no ac"]
    ):
        with pytest.raises(InputError, match=f"demo_{index}.*{says}"):
            read[index]


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_truncated_file(tmp_path: Path, kept: float) -> None:
    write_example(tmp_path / "demos.hdf5")
    content = (tmp_path / "demos.hdf5").read_bytes()
    (tmp_path / "demos.hdf5").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=r'demos.hdf5" was cut off \(truncated HDF5\)'):
        open_dataset(tmp_path / "demos.hdf5")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not data")
    with pytest.raises(InputError, match="is not an HDF5 file"):
        open_dataset(tmp_path / "notes.txt")
    for name in ("x" * 5000, tmp_path / ("y" * 300)):
        with pytest.raises(InputError, match='cannot read ".*File name too long'):
            open_dataset(name)
    write_example(tmp_path / "demos.hdf5")
    with pytest.raises(InputError, match='no dataset .* Did you mean ".*demos.hdf5"'):
        open_dataset(tmp_path / "demo.hdf5")
    with pytest.raises(InputError, match="holds no dataset .* Did you mean"):
        open_dataset(tmp_path)
    with h5py.File(tmp_path / "odd.hdf5", "w") as file:
        file["volts"] = np.zeros(3)
    with pytest.raises(InputError, match="holds volts, expected one of"):
        open_dataset(tmp_path / "odd.hdf5")
    with h5py.File(tmp_path / "empty.hdf5", "w") as file:
        file.create_group("data")
    with pytest.raises(InputError, match="no demonstrations"):
        open_dataset(tmp_path / "empty.hdf5")
