"""Captions of the shipped world: whole ones round-trip, partial ones ask for less."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.world import checker, gold
from diffusion.world.scenes import ANY, Scene, Thing, parse_caption, render, sample_scene

WHOLE = "a large plain red circle on the left"


def test_whole_captions_round_trip():
    rng = np.random.default_rng(0)
    for _ in range(500):
        scene = sample_scene(rng)
        assert parse_caption(scene.caption()) == scene


@pytest.mark.parametrize(
    ("caption", "scene"),
    [
        ("a circle", Scene(Thing(ANY, ANY, ANY, "circle"), None, ANY)),
        (
            "An orange star at the top.",
            Scene(Thing(ANY, ANY, "orange", "star"), None, "at the top"),
        ),
        (
            "a small ring above a  dotted cross",
            Scene(Thing("small", ANY, ANY, "ring"), Thing(ANY, "dotted", ANY, "cross"), "above"),
        ),
        ("a red large circle", None),  # out of order
        ("a dog on the left", None),
        ("a circle on the moon", None),
        ("a circle above", None),
        ("", None),
    ],
)
def test_what_a_caption_leaves_out_is_open(caption, scene):
    assert parse_caption(caption) == scene


@pytest.mark.parametrize(
    ("caption", "share"),
    [
        ("a circle", 1.0),
        ("a red circle", 1.0),
        ("a large red circle on the left", 1.0),
        ("a blue circle", 0.5),
        ("a small blue square on the right", 0.0),
    ],
)
def test_both_checkers_judge_only_what_was_asked(caption, share):
    scene = parse_caption(WHOLE)
    image = torch.from_numpy(render(scene, np.random.default_rng(0))).permute(2, 0, 1)[None]
    assert float(gold.score(image, [caption])["attributes"]) == pytest.approx(share)
    assert float(checker.hard_score(image, [caption])["attributes"]) == pytest.approx(share)
