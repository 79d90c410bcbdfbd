"""Grids: every image keeps its pixels and carries its caption, whole and readable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from genpol.reports import grids

NOISE = torch.from_numpy(np.random.default_rng(0).random((4, 3, 64, 64), np.float32))
SHORT = ["a cat", "a dog", "an owl", "a fox"]


def ink(picture: Image.Image) -> int:
    """Dark pixels."""
    return int((np.asarray(picture.convert("L")) < 100).sum())


def position(picture: Image.Image, image: torch.Tensor, factor: int) -> tuple[int, int]:
    """(top, left) of the enlarged image; fails when it is not on the picture, pixel by pixel."""
    whole = np.asarray(picture)
    part = np.asarray(grids.to_pil(image)).repeat(factor, 0).repeat(factor, 1)
    high, wide = part.shape[:2]
    found = [
        (y, x)
        for y, x in np.argwhere((whole == part[0, 0]).all(-1))
        if whole[y : y + high, x : x + wide].shape == part.shape
        and (whole[y : y + high, x : x + wide] == part).all()
    ]
    assert len(found) == 1
    return int(found[0][0]), int(found[0][1])


def test_images_are_enlarged_and_not_touched():
    picture = grids.grid(NOISE, SHORT, columns=2)
    places = [position(picture, image, 2) for image in NOISE]
    assert places[0][0] == places[1][0] < places[2][0] == places[3][0]
    assert places[0][1] == places[2][1] < places[1][1] == places[3][1]
    large = torch.rand(1, 3, 150, 140)
    assert position(grids.grid(large, ["a cat"]), large[0], 1)


def test_each_caption_stands_under_its_own_image():
    for i in range(4):
        captions = ["", "", "", ""]
        blank = grids.grid(torch.ones(4, 3, 64, 64), captions, columns=2)
        captions[i] = "MMMM"
        drawn = grids.grid(torch.ones(4, 3, 64, 64), captions, columns=2)
        assert ink(blank) == 0 < ink(drawn)
        top, left = position(grids.grid(NOISE, captions, columns=2), NOISE[i], 2)
        below = (left, top + 128, left + 128, min(top + 128 + 32, drawn.height))
        assert ink(drawn.crop(below)) == ink(drawn)


def test_letters_are_readable_on_small_images_and_grow_with_large_ones():
    def letters(side):
        """Height of an M."""
        drawn = grids.grid(torch.ones(1, 3, side, side), ["M"])
        rows = np.flatnonzero((np.asarray(drawn.convert("L")) < 100).any(1))
        return rows[-1] - rows[0] + 1

    assert letters(8) >= 8 and letters(64) >= 8
    assert letters(512) > 1.5 * letters(64)


def test_a_long_caption_is_wrapped_and_none_of_it_is_lost():
    text = "a small striped green cross to the left of a large striped blue cross, " * 2
    font = grids.font_for(text, 13)
    lines = grids.wrap(text, font, 128)
    assert " ".join(lines) == " ".join(text.split()) and len(lines) > 5
    assert all(font.getlength(line) <= 128 for line in lines)
    short, long = (grids.grid(NOISE[:1], [words]) for words in ("a cross", text))
    assert long.width == short.width and long.height - short.height >= 5 * 13
    assert ink(long) > ink(short)
    edge = np.asarray(long.convert("L"))[:, -2:]
    assert (edge == 255).all()  # nothing runs out of the picture


def test_a_word_that_is_too_wide_is_broken():
    font = grids.font_for("x", 13)
    lines = grids.wrap("w" * 50, font, 128)
    assert "".join(lines) == "w" * 50 and all(font.getlength(line) <= 128 for line in lines)


def test_what_is_cut_says_so():
    font = grids.font_for("x", 13)
    lines = grids.wrap("word " * 500, font, 128)
    assert len(lines) == grids.MOST_LINES and lines[-1].endswith("…")
    assert all(font.getlength(line) <= 128 for line in lines)
    assert not grids.wrap("word word", font, 128)[-1].endswith("…")


@pytest.mark.parametrize("text", ["кошка ночью", "猫 🐈 at night", "naïve “fox”", "a\tb\nc", ""])
def test_any_text_can_be_a_caption(text):
    drawn = grids.grid(torch.ones(1, 3, 64, 64), [text])
    assert (ink(drawn) > 0) == bool(text)


def test_cyrillic_letters_are_letters():
    """Not one box for each of them."""
    font = grids.font_for("кш", 20)
    assert bytes(font.getmask("к")) != bytes(font.getmask("ш"))


def test_pairs_are_labelled_and_share_a_caption():
    before, after = ([grids.to_pil(image) for image in half] for half in (NOISE[:2], NOISE[2:]))
    picture = grids.before_after(before, after, SHORT[:2], columns=1)
    places = [position(picture, image, 2) for image in NOISE]
    assert places[0][0] == places[2][0] < places[1][0] == places[3][0]
    assert places[0][1] == places[1][1] < places[2][1] == places[3][1]
    top, left = places[2]
    for x in (places[0][1], left):  # a label above each
        assert ink(picture.crop((x, top - 22, x + 128, top))) > 0
    titled = grids.before_after(before, after, SHORT[:2], title="held-out prompts", columns=1)
    assert titled.height > picture.height and ink(titled) > ink(picture)


def test_a_caption_for_each_image():
    with pytest.raises(ValueError, match="expected 4 captions"):
        grids.grid(NOISE, SHORT[:3])
