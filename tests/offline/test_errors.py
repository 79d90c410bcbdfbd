from __future__ import annotations

import pytest

import diffusion.errors
import offline.errors

BOTH = pytest.mark.parametrize("errors", [offline.errors, diffusion.errors])


@BOTH
def test_a_received_value_is_cut_and_stays_on_its_line(errors):
    assert errors.shown("x" * 1000) == "x" * 80 + "..."
    assert errors.shown("a\x1b[2J\nb") == r"a\x1b[2J\nb"
    assert errors.shown(ValueError("two\n lines")) == "two lines"
    assert errors.shown(10**10_000) == "a very long number"
    assert len(errors.shown([list(range(10_000))] * 1000)) < 90


@BOTH
@pytest.mark.parametrize("name", ["", "a", "x" * 1000])
def test_a_list_of_names_is_bounded_whatever_their_lengths(errors, name):
    assert len(errors.did_you_mean("zzz", [name] * 100_000)) < 500
    assert errors.listed(["one", "two"]) == "one, two"
