"""The ring of imagined transitions: what it keeps, and in which shape it gives it back."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from offline.errors import InputError
from offline.models.imagination import ImaginedRing
from offline.models.world_model import StateLayout


def test_several_observations_are_split_again():
    layout = StateLayout({"a": 2, "b": 1})
    ring = ImaginedRing(8, layout, 1, 3)
    state = torch.arange(12.0).reshape(4, 3)
    ring.add(state, torch.zeros(4, 1, 3), torch.arange(4.0), state + 100, torch.ones(4))
    batch = ring.sample(50, Generator().manual_seed(0))
    rows = batch.reward.long()
    assert torch.equal(batch.obs["a"], state[rows, :2])
    assert torch.equal(batch.obs["b"], state[rows, 2:])
    assert torch.equal(batch.next_obs["a"], state[rows, :2] + 100)


def test_the_ring_keeps_the_newest():
    ring = ImaginedRing(5, StateLayout({"state": 1}), 1, 1)

    def add(*numbers):
        column = torch.tensor(numbers)[:, None]
        ring.add(column, column[:, None], column[:, 0], column, column[:, 0])

    def numbers():
        rows = ring.state_dict()["rows"]
        assert torch.equal(rows["reward"], rows["act"][:, 0, 0])
        return sorted(rows["reward"].tolist())

    with pytest.raises(InputError, match="nothing has been imagined"):
        ring.sample(2)
    add(0.0, 1.0, 2.0)
    assert numbers() == [0, 1, 2] and len(ring) == 3
    add(3.0, 4.0, 5.0)  # wraps
    assert numbers() == [1, 2, 3, 4, 5] and len(ring) == 5
    add(6.0)
    assert numbers() == [2, 3, 4, 5, 6]
    add(*(float(i) for i in range(10, 22)))  # more than fit
    assert numbers() == [17, 18, 19, 20, 21]
    add(22.0, 23.0)
    assert numbers() == [19, 20, 21, 22, 23]
    drawn = ring.sample(500, Generator().manual_seed(0)).reward
    assert sorted(set(drawn.tolist())) == [19, 20, 21, 22, 23]
