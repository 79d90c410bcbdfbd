"""What an evaluation leaves as it was: modes and random generators, wherever they are held."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
import torch
from torch import nn

from genpol.runs.rng import undisturbed


class Part:
    """Holds whatever it is given."""

    def __init__(self, **held):
        vars(self).update(held)

    def method(self):
        return self


def everywhere() -> dict:
    """Generators and a network within reach of a policy, each by another way."""
    found = {
        "attribute": torch.Generator().manual_seed(1),
        "list": np.random.default_rng(2),
        "closure": torch.Generator().manual_seed(3),
        "method": np.random.RandomState(4),
        "partial": torch.Generator().manual_seed(5),
        "module": torch.Generator().manual_seed(6),
    }
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2))
    net[2].eval()  # trained with frozen statistics
    net.generator = found["module"]
    closed = found["closure"]
    policy = Part(
        generator=found["attribute"],
        parts=[{"deep": (found["list"],)}],
        select=lambda: closed,
        edit=Part(rng=found["method"]).method,
        later=functools.partial(print, found["partial"]),
        net=net,
    )
    policy.itself = policy  # reached once
    return found | {"policy": policy, "net": net}


def draw(generators) -> list[float]:
    """One number from each, and from each global one."""
    return [
        float(torch.rand((), generator=g)) if isinstance(g, torch.Generator) else float(g.normal())
        for g in generators
    ] + [float(torch.rand(())), float(np.random.rand()), random.random()]


def test_generators_and_modes_are_as_before():
    found = everywhere()
    policy, net = found.pop("policy"), found.pop("net")
    expected = draw(found.values())
    fresh = everywhere()
    policy, net = fresh.pop("policy"), fresh.pop("net")
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    plain = draw([])
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    with undisturbed(policy):
        assert not any(module.training for module in net.modules())
        statistics = net[2].running_mean.clone()
        assert torch.equal(net(torch.ones(3, 2)), net(torch.ones(3, 2)))  # no dropout
        assert torch.equal(net[2].running_mean, statistics)
        draw(fresh.values())
    assert [module.training for module in net.modules()] == [True, True, True, False]
    after = draw(fresh.values())
    assert after[: len(fresh)] == expected[: len(fresh)] and after[len(fresh) :] == plain


def test_also_after_an_error():
    net = nn.Dropout(0.5)
    before = torch.get_rng_state()
    with pytest.raises(ValueError), undisturbed(Part(net=net)):
        torch.rand(3)
        raise ValueError
    assert net.training and torch.equal(torch.get_rng_state(), before)
