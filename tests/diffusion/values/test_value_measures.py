"""How a value's ranking within prompts is measured, by hand-computed numbers."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from diffusion.values.measures import explained, rank_correlation, share_of_best


def test_rank_correlation_is_spearmans_of_each_prompt():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 7, generator=generator)
    rewards = torch.randint(0, 3, (5, 7), generator=generator).float()  # with ties
    expected = [spearmanr(v, r).statistic for v, r in zip(values, rewards, strict=True)]
    assert rank_correlation(values, rewards) == pytest.approx(sum(expected) / 5)


def test_what_lies_between_prompts_does_not_count():
    values = torch.tensor([[0.0, 1.0], [10.0, 11.0], [5.0, 5.0]])
    rewards = torch.tensor([[3.0, 2.0], [0.0, 7.0], [4.0, 4.0]])  # the last prompt tells nothing
    assert rank_correlation(values, rewards) == pytest.approx(0)  # -1 and 1
    assert math.isnan(rank_correlation(values[2:], rewards[2:]))


def test_share_of_best_is_of_the_gain_over_a_random_image():
    rewards = torch.tensor([[0.0, 3.0], [1.0, 2.0]])  # gains of 1.5 and .5 are possible
    assert share_of_best(rewards, rewards) == pytest.approx(1)
    assert share_of_best(-rewards, rewards) == pytest.approx(-1)
    first_right = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert share_of_best(first_right, rewards) == pytest.approx((1.5 - 0.5) / 2)
    assert math.isnan(share_of_best(rewards, torch.ones(2, 2)))


def test_explained():
    rewards = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert explained(rewards, rewards) == pytest.approx(1)
    assert explained(torch.full((2, 2), 1.5), rewards) == pytest.approx(0)
    assert math.isnan(explained(rewards, torch.ones(2, 2)))
