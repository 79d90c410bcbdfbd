"""Diversity by hand."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion.guards.diversity import within_group


def test_it_is_the_mean_distance_of_pairs_then_of_groups():
    grey = torch.tensor([0.0, 1.0, 0.5, 0.2, 0.2]).view(5, 1, 1, 1).expand(5, 3, 64, 64)
    group = torch.tensor([0, 0, 0, 1, 1])
    assert within_group(grey, group) == pytest.approx((2 / 3 + 0) / 2, abs=1e-6)


def test_fine_noise_counts_little_and_one_image_has_none():
    noise = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert within_group(noise, torch.zeros(2).long()) < 0.08
    assert math.isnan(within_group(noise, torch.arange(2)))


def test_other_features_can_stand_in():
    images = torch.rand(3, 3, 8, 8)
    found = within_group(images, torch.zeros(3).long(), lambda x: torch.eye(3))
    assert found == pytest.approx((2 / 3) ** 0.5)
