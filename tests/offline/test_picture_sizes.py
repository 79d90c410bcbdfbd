"""Pictures at the size that a network was trained with."""

from __future__ import annotations

import numpy as np
import torch

from offline.critics.value import ValueFunction
from offline.pictures import at_sizes, resize
from offline.spec import ActionSpec


def test_areas_are_averaged():
    fine = np.zeros((8, 8, 3), np.uint8)
    fine[::2] = 200  # lines that a nearest neighbour would make one colour
    small = resize(fine, (2, 2))
    assert small.shape == (2, 2, 3) and abs(small.astype(int) - 100).max() <= 30
    assert resize(fine, (8, 8)) is fine
    assert resize(fine, (3, 5)).shape == (3, 5, 3)


def test_only_pictures_of_another_size_are_changed():
    obs = {
        "state": torch.zeros(2, 3),
        "top": torch.full((2, 8, 8, 3), 9, dtype=torch.uint8),
        "side": torch.zeros(2, 4, 4, 3, dtype=torch.uint8),
    }
    shapes = {"state": (3,), "top": (4, 4, 3), "side": (4, 4, 3)}
    found = at_sizes(obs, shapes)
    assert found["top"].shape == (2, 4, 4, 3) and (found["top"] == 9).all()
    assert found["state"] is obs["state"] and found["side"] is obs["side"]
    assert at_sizes(found, shapes) is found


def test_a_critic_of_small_pictures_takes_large_ones():
    spec = ActionSpec.from_bounds([-1.0], [1.0])
    value = ValueFunction(spec, {"top": (16, 16, 3)}, hidden=(8,), ensemble=2)
    large = torch.randint(0, 255, (1, 32, 48, 3), dtype=torch.uint8)
    small = torch.from_numpy(resize(large[0].numpy(), (16, 16)).copy())[None]
    with torch.no_grad():
        assert torch.equal(value.encode({"top": large}), value.encode({"top": small}))
