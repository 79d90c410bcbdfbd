"""What an evaluation leaves as it was: modes of networks and random streams."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from genpol.runs.rng import undisturbed


def draw(generators) -> list[float]:
    """One number from each stream, and from each global one."""
    return [float(torch.rand((), generator=g)) for g in generators] + [
        float(torch.rand(())), float(np.random.rand()), random.random()
    ]  # fmt: skip


def seeded() -> list[torch.Generator]:
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    return [torch.Generator().manual_seed(seed) for seed in (1, 2)]


def test_streams_and_modes_are_as_before():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2))
    net[2].eval()  # trained with frozen statistics
    expected = draw(seeded())
    streams = seeded()
    with undisturbed([net], streams):
        assert not any(module.training for module in net.modules())
        statistics = net[2].running_mean.clone()
        assert torch.equal(net(torch.ones(3, 2)), net(torch.ones(3, 2)))  # no dropout
        assert torch.equal(net[2].running_mean, statistics)
        assert draw(streams) == expected
    assert [module.training for module in net.modules()] == [True, True, True, False]
    assert draw(streams) == expected


def test_also_after_an_error():
    net, streams = nn.Dropout(0.5), seeded()
    before = torch.get_rng_state(), streams[0].get_state()
    with pytest.raises(ValueError), undisturbed([net], streams):
        draw(streams)
        raise ValueError
    assert net.training and torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(streams[0].get_state(), before[1])


def test_an_unlisted_stream_moves_on():
    (first, second), expected = seeded(), draw(seeded())
    with undisturbed(generators=[first]):
        draw([first, second])
    assert float(torch.rand((), generator=first)) == expected[0]
    assert float(torch.rand((), generator=second)) != expected[1]
