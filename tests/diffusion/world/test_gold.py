"""The gold checker agrees with the renderer, and with nothing that is not drawn as asked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from diffusion.errors import InputError
from diffusion.world import scenes
from diffusion.world.gold import judge, score
from diffusion.world.gold_objects import find_objects
from diffusion.world.scenes import Scene, Thing, parse_caption, render, sample_scene

CHOICES = {
    "shape": scenes.SHAPES,
    "colour": scenes.COLOURS,
    "size": scenes.SIZES,
    "texture": scenes.TEXTURES,
}
RED_STAR = "a large plain red star in the center"


def draw(caption: str, seed: int = 0) -> np.ndarray:
    scene = parse_caption(caption)
    assert scene is not None
    return render(scene, np.random.default_rng(seed))


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    blurred = ndimage.gaussian_filter(image, (0.6, 0.6, 0))
    return np.clip(blurred + rng.normal(0, 0.03, image.shape), 0, 1)


def swaps(scene: Scene, rng: np.random.Generator):
    """Every attribute in turn, with the scene that asks for another value of it."""
    for which in ("first",) if scene.second is None else ("first", "second"):
        thing = getattr(scene, which)
        for attribute, values in CHOICES.items():
            other = [value for value in values if value != getattr(thing, attribute)]
            changed = replace(thing, **{attribute: other[rng.integers(len(other))]})
            yield attribute, replace(scene, **{which: changed})
    places = scenes.POSITIONS if scene.second is None else scenes.RELATIONS
    other = [place for place in places if place != scene.place]
    yield "place", replace(scene, place=other[rng.integers(len(other))])


@pytest.mark.parametrize(("rough", "least"), [(False, 0.99), (True, 0.95)])
def test_drawn_scenes_are_judged_correct(rough: bool, least: float) -> None:
    rng = np.random.default_rng(7)
    right, asked, wholly = Counter(), Counter(), 0
    for _ in range(150):
        scene = sample_scene(rng)
        image = render(scene, rng)
        verdict = judge(degrade(image, rng) if rough else image, scene.caption())
        wholly += verdict.wholly
        for name, correct in verdict.correct.items():
            attribute = name.split(".")[-1]
            asked[attribute] += 1
            right[attribute] += correct
    assert set(asked) == {*CHOICES, "place"}
    assert all(right[name] >= least * asked[name] for name in asked), (right, asked)
    assert wholly >= 0.95 * 150


def test_every_small_object_is_recognised() -> None:
    rng = np.random.default_rng(3)
    for shape in scenes.SHAPES:
        for texture in scenes.TEXTURES:
            for colour in scenes.COLOURS:
                scene = Scene(Thing("small", texture, colour, shape), None, "at the top")
                assert judge(render(scene, rng), scene.caption()).wholly, scene.caption()


def test_a_swapped_attribute_is_flagged() -> None:
    rng = np.random.default_rng(11)
    flagged, asked = Counter(), Counter()
    for _ in range(40):
        scene = sample_scene(rng)
        image = render(scene, rng)
        for attribute, other in swaps(scene, rng):
            correct = judge(image, other.caption()).correct
            wrong = [name for name, ok in correct.items() if name.endswith(attribute) and not ok]
            asked[attribute] += 1
            flagged[attribute] += bool(wrong)
    assert all(flagged[name] >= 0.98 * asked[name] for name in asked), (flagged, asked)


def test_one_wrong_attribute_of_nine_is_eight_ninths() -> None:
    image = draw("a large plain red star above a small dotted blue ring")
    verdict = judge(image, "a large plain red star above a small dotted green ring")
    assert [name for name, ok in verdict.correct.items() if not ok] == ["second.colour"]
    assert verdict.fraction == pytest.approx(8 / 9)
    assert not verdict.wholly


def test_a_reversed_relation_is_only_a_wrong_place() -> None:
    image = draw("a large plain red star above a small dotted blue ring")
    assert judge(image, "a small dotted blue ring below a large plain red star").wholly
    verdict = judge(image, "a small dotted blue ring above a large plain red star")
    assert [name for name, ok in verdict.correct.items() if not ok] == ["place"]


def test_a_missing_object_has_nothing_right() -> None:
    image = draw("a small plain blue ring on the left")
    verdict = judge(image, "a large striped red star to the right of a small plain blue ring")
    right = {name for name, ok in verdict.correct.items() if ok}
    assert right == {"second.shape", "second.colour", "second.size", "second.texture"}


def test_an_extra_object_spoils_only_wholly() -> None:
    image = np.minimum(draw(RED_STAR), 0.9)
    image[2:10, 2:10] = (0.1, 0.3, 0.9)
    verdict = judge(image, RED_STAR)
    assert all(verdict.correct.values()) and not verdict.wholly


@pytest.mark.parametrize("fill", [0.9, 0.0, np.nan])
def test_an_empty_or_broken_image_has_nothing_right(fill: float) -> None:
    verdict = judge(np.full((64, 64, 3), fill, np.float32), RED_STAR)
    assert verdict.fraction == 0 and not verdict.wholly


def test_touching_objects_are_told_apart() -> None:
    ground = np.full((64, 64, 3), 0.9, np.float32)
    for colour, centre in (("red", 18.0), ("blue", 46.0)):  # 28 apart, crosses 28 wide
        x, y = scenes._XX - centre, scenes._YY - 32
        ground[scenes.shape_distance("cross", x, y, 14.2) < 0] = scenes.PALETTE[colour]
    caption = "a large plain red cross to the left of a large plain blue cross"
    assert judge(ground, caption).wholly


def test_blobs_have_no_shape() -> None:
    rng = np.random.default_rng(5)
    smudges = 0
    for size in scenes.SIZES:
        drawn = [
            Scene(Thing(size, "plain", "red", s), None, "in the center") for s in scenes.SHAPES
        ]
        for _ in range(20):
            average = np.mean([render(scene, rng) for scene in drawn], 0)
            smudges += any(found.shape for found in find_objects(average))
        for scene in drawn:
            blurred = ndimage.gaussian_filter(render(scene, rng), (3, 3, 0))
            assert not judge(blurred, scene.caption()).correct["first.shape"], scene.caption()
    assert smudges <= 6  # of 40; those are discs with an edge as sharp as a blurred circle's


def test_muddy_and_dark_colours_are_wrong() -> None:
    image, caption = draw("a large plain red square in the center"), "a large plain {} square"
    ground = image[0, 0]
    inside = np.abs(image - ground).sum(-1) > 0.5
    for muddy in ((0.45, 0.40, 0.35), (0.33, 0.05, 0.05)):
        image[inside] = muddy
        for colour in scenes.COLOURS:
            verdict = judge(image, caption.format(colour) + " in the center")
            assert not verdict.correct["first.colour"]
            assert verdict.correct["first.shape"]


def test_score_resizes_and_batches() -> None:
    captions = [RED_STAR, "a small striped cyan ring on the left"]
    images = torch.from_numpy(np.stack([draw(caption) for caption in captions]))
    images = images.permute(0, 3, 1, 2)
    doubled = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear")
    for batch in (images, doubled):
        scores = score(batch, captions)
        assert scores["attributes"].tolist() == scores["wholly"].tolist() == [1.0, 1.0]
        assert scores["attributes"].shape == (2,)
    # A red star in the centre is asked to be a small striped cyan ring on the left: all wrong.
    assert score(images[:1], captions[1:])["attributes"].tolist() == [0.0]


def test_unusable_input_is_named() -> None:
    with pytest.raises(InputError, match="a photo of a dog"):
        judge(draw(RED_STAR), "a photo of a dog")
    with pytest.raises(InputError, match="1 prompts"):
        score(torch.zeros(2, 3, 64, 64), [RED_STAR])
