"""What an HDF5 file holds is checked before it is read: one of each kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from dataset_examples import write_example
from malformed_hdf5 import ARRAYS, ATTRIBUTES

from offline.errors import InputError
from robots.datasets.hdf5 import open_hdf5
from robots.datasets.hdf5_attributes import document, flag, whole_number, words
from robots.datasets.hdf5_items import check_contained
from robots.datasets.open import open_dataset

SAYS = {
    "text": "holds text, expected numbers",
    "ragged": "holds objects",
    "compound": "holds records",
    "complex": "holds complex numbers",
    "no space": "is empty",
    "scalar": "has shape",
    "infinite": '"actions" has NaN or infinite',
    "1e300": '"actions" has NaN or infinite',
    "petabyte": "declares the shape .* but the file stores 0 bytes",
    "wide": "declares the shape",
    "group": "is a group, expected an array",
    "named type": "is a datatype",
    "external raw": 'takes its numbers from other files .*secret.bin"',
    "virtual": "takes its numbers from other files",
    "external link": "is a link to another file",
    "dangling": 'is a link to "/nowhere", which is not there',
    "loop": "which is not there",
}


@pytest.mark.parametrize("way", SAYS)
def test_arrays(way: str, tmp_path: Path) -> None:
    write_example(tmp_path / "d.hdf5", 2)
    with h5py.File(tmp_path / "d.hdf5", "r+") as file:
        demo = file["data/demo_0"]
        ARRAYS[way][1](demo, "actions", demo["actions"][()])
    with pytest.raises(InputError, match=SAYS[way]):
        open_dataset(tmp_path / "d.hdf5")[0]


def test_nan_rewards_and_rewards_of_complex_numbers(tmp_path: Path) -> None:
    for way, says in (("nan", "rewards.* NaN"), ("complex", "rewards.* complex")):
        write_example(tmp_path / "d.hdf5", 2)
        with h5py.File(tmp_path / "d.hdf5", "r+") as file:
            demo = file["data/demo_1"]
            ARRAYS[way][1](demo, "rewards", demo["rewards"][()])
        read = open_dataset(tmp_path / "d.hdf5")
        read[0]
        with pytest.raises(InputError, match=says):
            read[1]


@pytest.mark.parametrize(
    ("function", "good", "bad"),
    [
        (whole_number, 3, ("text", "nan", "negative", "2**62", "numbers", "no space", "complex")),
        (flag, True, ("text", "half", "negative", "numbers", "no space", "compound")),
        (words, "text", ("negative", "numbers", "no space", "compound", "half")),
        (
            lambda attrs, name, where: document(attrs, name, where, dict),
            '{"a": 1}',
            ("text", "list", "number as text", "nested", "not UTF-8", "numbers", "half"),
        ),
    ],
)
def test_attributes(
    function: Callable[..., object], good: object, bad: tuple[str, ...], tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["good"] = good
        assert function(file.attrs, "good", "it") in (good, {"a": 1})
        assert function(file.attrs, "absent", "it") is None
        for name in bad:
            file.attrs["bad"] = ATTRIBUTES[name]
            with pytest.raises(InputError, match='it: attribute "bad"'):
                function(file.attrs, "bad", "it")


def test_a_file_for_other_libraries_is_walked_whole(tmp_path: Path) -> None:
    for way in ("external raw", "virtual", "external link", "loop", "petabyte"):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            group = file.create_group("a/b")
            group["c"] = np.zeros((4, 2), np.float32)
            group["again"] = file["a"]  # in itself
        with open_hdf5(tmp_path / "x.h5") as file:
            check_contained(file, "it")
        with h5py.File(tmp_path / "x.h5", "r+") as file:
            ARRAYS[way][1](file["a/b"], "c", np.zeros((4, 2), np.float32))
        with pytest.raises(InputError), open_hdf5(tmp_path / "x.h5") as file:
            check_contained(file, "it")
