"""Names of observations: one reading is found, several are refused."""

from __future__ import annotations

import pytest

from offline.errors import InputError
from offline.naming import match_names, normal_form, own_names


def test_prefixes_and_separators_do_not_count():
    for name in ("state", "observation.state", "observation/state", "obs_state", "State"):
        assert normal_form(name) == "state"
    assert normal_form("observation.images.top") == normal_form("images/top") == "imagestop"
    assert normal_form("observation.images.top", 2) == normal_form("top", 2) == "top"
    # a prefix that is all there is stays
    assert [normal_form(name, 2) for name in ("observation", "images", "obs/image")] == [
        "observation",
        "images",
        "image",
    ]


def test_one_reading_is_found():
    wanted = ["state", "images.top", "images.wrist_left"]
    theirs = ["observation/state", "images/wrist-left", "prompt", "observation.images.top"]
    assert match_names(wanted, theirs) == {
        "state": "observation/state",
        "images.top": "observation.images.top",
        "images.wrist_left": "images/wrist-left",
    }
    assert match_names(["a", "b"], ["b"]) == {"b": "b"}
    # a name that is there means itself, and nobody else may have it
    assert match_names(["state", "observation.state"], ["state"]) == {"state": "state"}
    # the nearer name wins over one that lacks a prefix more
    assert match_names(["images.top"], ["top", "observation/images/top"]) == {
        "images.top": "observation/images/top"
    }


def test_several_readings_are_refused_by_name():
    with pytest.raises(InputError, match='"state" is ambiguous.*observation/state, obs.state: do'):
        match_names(["state"], ["observation/state", "obs.state"], "do this")
    with pytest.raises(InputError, match="images.top, image.top may each be top"):
        match_names(["images.top", "image.top"], ["top"])


def test_what_a_user_asks_for():
    known = ["images.top", "images.side", "state"]
    assert own_names(["top", "state"], known, "the dataset") == ("images.top", "state")
    with pytest.raises(InputError, match='the dataset has no observation "tip".'):
        own_names(["tip"], known, "the dataset")
