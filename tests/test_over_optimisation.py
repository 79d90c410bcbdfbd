"""The weak checkers are rewards, and the table says what its rows say."""

from __future__ import annotations

import torch

from scripts import weak_checkers
from scripts.over_optimisation import ARMS, SEEDS, block


def test_the_worst_of_three_is_the_least_of_each_image():
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompts = ["a small plain red circle above a large striped blue star"] * 4
    three = [
        f(images, prompts) for f in (weak_checkers.weak0, weak_checkers.weak1, weak_checkers.weak2)
    ]
    assert torch.equal(
        weak_checkers.worst_of_three(images, prompts), torch.stack(three).min(0).values
    )
    assert all(0 < float(v) < 1 for each in three for v in each)
    assert not torch.equal(three[0], three[1])


def test_the_table_has_the_peak_and_the_fall_from_it():
    gold = {0: 0.5, 8: 0.8, 16: 0.7}
    rows = [
        {"arm": arm, "seed": str(seed), "epoch": str(epoch), "gold": str(value), "weak0": "0.9"}
        | {"kl_forward": "3", "diversity": "0.1"}
        for arm in ARMS
        for seed in SEEDS
        for epoch, value in gold.items()
    ]
    lines = block(rows).splitlines()
    row = next(line for line in lines if line.startswith("| one weak checker |"))
    assert "| 80.0 ± 0.0 (8) | 70.0 ± 0.0 | 10.0 ± 0.0 |" in row
