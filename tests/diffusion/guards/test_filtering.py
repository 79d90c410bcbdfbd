"""Training on the best and the worst of each group."""

from __future__ import annotations

import pytest
import torch

from diffusion.config import FinetuneConfig, check
from diffusion.errors import InputError
from diffusion.guards.filtering import best_and_worst


def test_the_best_and_the_worst_of_each_group_are_kept_and_small_groups_whole():
    reward = torch.tensor([3.0, 1.0, 2.0, 0.0, 5.0, 4.0, 9.0, 8.0])
    group = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    assert best_and_worst(reward, group, 1).tolist() == [3, 4, 6, 7]
    assert best_and_worst(reward, group, 2).tolist() == [1, 3, 4, 5, 6, 7]


def test_ties_are_broken_by_place_and_no_row_is_kept_twice():
    kept = best_and_worst(torch.zeros(12), torch.tensor([0, 1] * 6), 2)
    assert kept.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images_per_prompt": 4, "filter_keep": 2}, "nothing is filtered"),
        ({"images_per_prompt": 8, "algorithm": "dpo"}, "pairs of files"),
    ],
)
def test_a_filter_that_cannot_work_is_refused(options, said):
    from diffusion.recommended import PUBLISHED

    config = FinetuneConfig(filter="best-worst", kl_weight=0.0, draws=1, **options)
    with pytest.raises(InputError, match=said):
        check(config.resolved(PUBLISHED))
