from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le, Lt

from offline.errors import InputError
from offline.option_check import check_numbers


@dataclass(frozen=True)
class Settings:
    rate: Annotated[float, Gt(0)] = 1e-3
    decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    keep_best: Annotated[int, Ge(1)] | None = None
    lengths: tuple[Annotated[int, Ge(1), Le(9)], ...] = (1,)
    weight: float = 1.0
    name: str = "nan"
    kind: Literal["one", "two"] = "one"
    folder: Path = Path("nan")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"rate": 0.0}, "--rate must be above 0, received 0.0"),
        ({"rate": float("nan")}, "--rate must be a finite number, received nan"),
        ({"weight": float("-inf")}, "--weight must be a finite number, received -inf"),
        ({"decay": 1.0}, "--decay must be below 1, received 1.0"),
        ({"keep_best": 0}, "--keep-best must be at least 1, received 0"),
        ({"keep_best": 1.5}, "--keep-best must be a whole number, received 1.5"),
        ({"lengths": (3, 10)}, "--lengths must be at most 9, received 10"),
        ({"rate": "x" * 1000}, f"--rate must be a number, received {'x' * 80}..."),
    ],
)
def test_a_number_out_of_range_is_one_line_that_names_the_option(given, line):
    with pytest.raises(InputError) as error:
        check_numbers(Settings(**given))
    assert str(error.value) == line


def test_what_is_in_range_passes_and_what_is_no_number_is_left_alone():
    check_numbers(Settings(rate=1e-9, keep_best=1, lengths=(9,), kind="no such"))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"lengths": (10**5000,)}, "--lengths must be at most 9, received a very long number"),
        ({"keep_best": True}, "--keep-best must be a whole number, received True"),
        ({"rate": "3"}, "--rate must be a number, received 3"),
        ({"lengths": 3}, "--lengths must be several numbers, received 3"),
    ],
)
def test_what_only_resembles_a_number_is_refused(given, line):
    with pytest.raises(InputError) as error:
        check_numbers(Settings(**given))
    assert str(error.value) == line


def test_numbers_of_numpy_and_lists_are_as_good_as_pythons_own():
    given = {"rate": np.float32(0.1), "keep_best": np.int64(2), "lengths": [np.int32(1), 2]}
    check_numbers(Settings(**given))
    with pytest.raises(InputError, match="--rate must be a finite number"):
        check_numbers(Settings(rate=np.float64("nan")))
