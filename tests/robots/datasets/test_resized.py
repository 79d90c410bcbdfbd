"""Pictures at another size: what else a recording says of its episodes is still said."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from robots.datasets.resized import Resized


def recording(**offers) -> SimpleNamespace:
    shapes = {"top": (24, 32, 3), "state": (4,)}
    return SimpleNamespace(obs_shapes=shapes, lengths=[3], env=None, splits={}, meta={}, **offers)


def test_a_recordings_facts_are_told_without_its_pictures():
    small = Resized(recording(facts=lambda index: f"facts of {index}"), 8)
    assert small.obs_shapes == {"top": (8, 8, 3), "state": (4,)}
    assert small.facts(0) == "facts of 0"


def test_what_the_dataset_does_not_offer_is_not_there():
    small = Resized(recording(), 8)
    assert not hasattr(small, "facts") and not hasattr(small, "success_of")
    with pytest.raises(AttributeError, match="no attribute anything"):
        _ = small.anything
