"""The learned checker: its columns and errors by hand, its accuracy on scenes it never saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffusion.errors import InputError
from diffusion.world import checker
from diffusion.world.scenes import parse_caption, render, sample_caption

ONE = "a small plain red circle on the left"
TWO = "a large striped blue star to the right of a small dotted green ring"
BELOW = "a large striped blue star below a small dotted green ring"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(captions: list[str], seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    images = [render(parse_caption(caption), rng) for caption in captions]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def held_out() -> tuple[torch.Tensor, list[str]]:
    rng = np.random.default_rng(11)
    captions = [sample_caption(rng, held_out=True) for _ in range(384)]
    return draw(captions, seed=12), captions


def test_answers_are_leftmost_first():
    # "star to the right of ring": the ring is slot 0. Classes are positions in the word lists.
    assert checker.answers(parse_caption(TWO)) == [0, 2, 1, 4, 1, 1, 2, 5, 5]
    assert checker.answers(parse_caption(BELOW)) == [0, 2, 1, 4, 1, 1, 2, 5, 6]
    assert checker.answers(parse_caption(ONE)) == [0, 0, 0, 0, None, None, None, None, 0]


def test_shapes_mask_and_mean():
    captions = [ONE, TWO]
    images = draw(captions)
    probabilities, mask = checker.attribute_probabilities(images, captions)
    assert probabilities.shape == mask.shape == (2, 9)
    assert mask.sum(dim=1).tolist() == [5, 9]
    assert probabilities[~mask].abs().sum() == 0
    expected = [probabilities[0].sum() / 5, probabilities[1].sum() / 9]
    torch.testing.assert_close(checker.soft_score(images, captions), torch.stack(expected))


def test_probabilities_of_one_question_sum_to_at_most_one():
    # Ask one picture for every colour: what is left over is the probability of "none".
    captions = [ONE.replace("red", colour) for colour in checker.COLOURS]
    images = draw([ONE]).expand(len(captions), -1, -1, -1)
    by_colour = checker.attribute_probabilities(images, captions)[0][:, 2]
    assert by_colour.argmax() == 0
    assert 0.8 < by_colour.sum() <= 1 + 1e-5


def test_clean_held_out_scenes_are_read_right(held_out):
    images, captions = held_out
    score = checker.hard_score(images, captions)
    assert score["attributes"].mean() >= 0.97
    assert score["wholly"].mean() >= 0.85
    assert set(score["wholly"].unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(score["wholly"] == 1, score["attributes"] == 1)


def test_degraded_held_out_scenes_are_read_right(held_out):
    images, captions = held_out
    small = F.interpolate(images, (40, 40), mode="bilinear", antialias=True)
    rough = F.interpolate(small, (64, 64), mode="bilinear")
    generator = torch.Generator().manual_seed(0)
    rough = (rough + 0.06 * torch.randn(rough.shape, generator=generator)).clamp(0, 1)
    assert checker.hard_score(rough, captions)["attributes"].mean() >= 0.93


def test_score_falls_as_a_scene_fades(held_out):
    images, captions = held_out[0][:64], held_out[1][:64]
    means = [
        checker.soft_score(images * keep + 0.9 * (1 - keep), captions).mean().item()
        for keep in (1.0, 0.2, 0.05, 0.0)
    ]
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.85
    assert means[-1] < 0.1


def test_wrong_captions_score_low_and_one_wrong_word_costs_its_share():
    images = draw([TWO] * 8)
    wrong_word = TWO.replace("blue", "yellow")
    right = checker.soft_score(images, [TWO] * 8)
    one_off = checker.soft_score(images, [wrong_word] * 8)
    assert (right - one_off).mean() == pytest.approx(1 / 9, abs=0.03)
    assert checker.hard_score(images, [wrong_word] * 8)["attributes"].mean() == pytest.approx(8 / 9)
    swapped = TWO.replace(
        "right", "left"
    )  # both objects in the other's place: only the layout fits
    assert checker.hard_score(images, [swapped] * 8)["attributes"].mean() < 0.2


def test_a_missing_second_object_earns_nothing_by_chance():
    one = draw(["a small dotted green ring on the left"] * 8)
    probabilities, _ = checker.attribute_probabilities(one, [TWO] * 8)
    assert probabilities[:, :4].mean() > 0.8  # the ring is there
    assert probabilities[:, 4:8].mean() < 0.1  # the star is not


def test_a_batch_scores_like_its_parts_at_any_size_dtype_and_autocast(held_out):
    images, captions = held_out[0][:8], held_out[1][:8]
    together = checker.soft_score(images, captions)
    alone = [checker.soft_score(i[None], [c]) for i, c in zip(images, captions, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(checker.soft_score(images, captions), together)
    doubled = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert checker.hard_score(doubled, captions)["attributes"].mean() > 0.95
    assert not checker.soft_score(images.clone().requires_grad_(), captions).requires_grad


@pytest.mark.parametrize(
    ("images", "prompts", "said"),
    [
        (torch.zeros(1, 3, 64, 64), ["a photo of a cat"], '"a photo of a cat"'),
        (torch.zeros(2, 3, 64, 64), [ONE], "2 images and 1 prompts"),
        (torch.zeros(1, 64, 64, 3), [ONE], "channels first"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), [ONE], "255"),
        (torch.full((1, 3, 64, 64), -1.0), [ONE], "[-1, 1]"),
    ],
)
def test_errors_are_one_line_and_name_what_came(images, prompts, said):
    with pytest.raises(InputError) as caught:
        checker.soft_score(images, prompts)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shipped_weights_are_small():
    assert checker.WEIGHTS.stat().st_size < 600_000
