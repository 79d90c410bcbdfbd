"""The text recognition reward: its score with a recogniser of the test's, and the real one."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from diffusion.errors import InputError, RewardError
from diffusion.prompts.prompt import Prompt
from diffusion.rewards import Reward, load_reward
from diffusion.rewards.ocr import OCR, distance, similarity, wanted_text


@pytest.mark.parametrize(
    ("found", "wanted", "score"),
    [
        ("OPEN", "open", 1),
        ("we are o p e n today", "Open", 1),  # inside of other text, and however it is spaced
        ("", "open", 0),
        ("opxn", "open", 0.75),
        ("ope", "open", 0.75),
        ("openn"[1:], "open", 0.5),
        ("oppen", "open", 0.75),
        ("xyz", "open", 0),
        ("o" * 3000, "open", 0),
        ("ÖFFNUNG", "öffnung", 1),
        ("24", "25", 0.5),
    ],
)
def test_similarity(found: str, wanted: str, score: float) -> None:
    assert similarity(found, wanted) == score


def test_distance_is_levenshteins() -> None:
    assert distance("kitten", "sitting") == 3 and distance("", "abc") == 3

    def slow(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        if a[0] == b[0]:
            return slow(a[1:], b[1:])
        return 1 + min(slow(a[1:], b), slow(a, b[1:]), slow(a[1:], b[1:]))

    draw = random.Random(0)
    for _ in range(60):
        a, b = ("".join(draw.choices("ab", k=draw.randrange(6))) for _ in range(2))
        assert distance(a, b) == slow(a, b)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ('A sign that says "OPEN 24 h"', "OPEN 24 h"),
        ("A sign that says “Offen”, at night", "Offen"),
        ("Un panneau «Ouvert»", "Ouvert"),
        ("A dog's sign that reads 'don't walk', the dog's own", "don't walk"),
        ('"ONE" over "TWO"', "ONE TWO"),
        (Prompt("a poster", metadata={"text": "SALE"}), "SALE"),
        (Prompt('a "poster"', metadata={"ocr": 50, "text": None}), "50"),
        (Prompt('a "poster"', metadata={"text": "  "}), "poster"),
    ],
)
def test_the_text_that_a_prompt_asks_for(prompt: str, wanted: str) -> None:
    assert wanted_text(prompt) == wanted


@pytest.mark.parametrize("prompt", ["a dog's bone, a cat's tail", 'an inch: 5"', '""', '" "', ""])
def test_a_prompt_without_text_is_named(prompt: str) -> None:
    reward = Reward("ocr", [(1.0, "ocr", OCR(lambda pixels: "x"))])
    with pytest.raises(RewardError, match="asks for no text. Quote the text") as caught:
        reward(torch.zeros(2, 3, 4, 4), ['"good"', prompt])
    assert "\n" not in str(caught.value)


def test_the_recogniser_gets_pixels() -> None:
    seen = []

    def recognise(pixels: np.ndarray) -> str:
        seen.append(pixels)
        return "cats" if pixels[0, 0, 0] else "dog"

    reward = Reward("ocr", [(1.0, "ocr", OCR(recognise))])
    batch = torch.zeros(2, 3, 4, 6)
    batch[0, 0] = 1
    assert reward(batch, ['"cats"', '"cats"']).tolist() == [1, 0]
    assert seen[0].dtype == np.uint8 and seen[0].shape == (4, 6, 3)
    assert seen[0][0, 0].tolist() == [255, 0, 0]


def test_without_its_package_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    with pytest.raises(InputError, match=r'needs rapidocr-onnxruntime.*"genpol\[ocr\]"'):
        load_reward("ocr")
    with pytest.raises(InputError, match="has no weights: leave out @/w"):
        load_reward("ocr@/w")


def picture(text: str, size: int = 128) -> torch.Tensor:
    image = Image.new("RGB", (size, size), "white")
    font = ImageFont.load_default(size // 7)
    ImageDraw.Draw(image).text((size // 12, size // 3), text, font=font, fill="darkblue")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.mark.slow
def test_the_real_recogniser_reads_rendered_text() -> None:
    pytest.importorskip("rapidocr_onnxruntime")
    reward = load_reward("ocr")
    words = ["OPEN 24", "Hello", "Sale", "exit"]
    right = reward(torch.stack([picture(word) for word in words]), [f'a "{w}"' for w in words])
    assert right.tolist() == [1, 1, 1, 1]
    others = ["Hullo", "Scale", "fish", "OPEN", "OPEN", "OPEN"]
    pictures = torch.stack([picture(word) for word in words[1:]] * 2)
    wrong = reward(pictures, [f'a "{word}"' for word in others])
    assert wrong[:2].tolist() == pytest.approx([0.8, 0.8]) and wrong[3:].max() <= 0.5
    blank = reward(torch.stack([torch.ones(3, 64, 64), torch.rand(3, 64, 64)]), ['"a"', '"a"'])
    assert blank.tolist() == [0, 0]
    again = reward(torch.stack([picture(word) for word in words]), [f'a "{w}"' for w in words])
    assert torch.equal(again, right)
