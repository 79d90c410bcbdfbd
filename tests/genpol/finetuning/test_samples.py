"""The before/after picture of a run comes from what both evaluations saved."""

from __future__ import annotations

import numpy as np
import torch

from diffusion.measures import Evaluation
from genpol.finetuning.samples import before_after_picture, save_evaluation


def evaluation(prompts: list[str], shade: float) -> Evaluation:
    images = torch.full((len(prompts), 3, 8, 8), shade)
    return Evaluation(images, prompts, {"reward": torch.zeros(len(prompts))})


def test_both_evaluations_are_shown_with_their_prompts(tmp_path):
    save_evaluation(tmp_path, "before", evaluation(["a cat", "a dog"], 0.2))
    save_evaluation(tmp_path, "after", evaluation(["a cat", "a dog"], 0.6))
    picture = before_after_picture(tmp_path, 3)
    shades, counts = np.unique(np.asarray(picture.convert("L")), return_counts=True)
    found = dict(zip(shades.tolist(), counts.tolist(), strict=True))
    assert found[51] >= 2 * 128 * 128 and found[153] >= 2 * 128 * 128
    assert min(found) < 51  # letters


def test_no_pairs_are_made_up(tmp_path):
    save_evaluation(tmp_path, "after", evaluation(["a cat"], 0.6))
    assert before_after_picture(tmp_path, 3) is None  # nothing was saved before training
    save_evaluation(tmp_path, "before", evaluation(["a dog"], 0.2))
    assert before_after_picture(tmp_path, 3) is None  # of another prompt
