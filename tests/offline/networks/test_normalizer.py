"""Standardised observations: the limit, and statistics that change under networks that learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from offline.critics.lipschitz import layer_sigmas
from offline.critics.value import ValueFunction
from offline.networks.heads import mlp
from offline.networks.normalizer import CLIP, ObsNormalizer, limit
from offline.spec import ActionSpec

SPEC = ActionSpec.from_bounds([-1.0], [1.0], chunk=2)
SHAPES = {"camera": (16, 16, 3), "language": (8,), "position": (2,), "state": (3,)}


def stats(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    sizes = {"position": 2, "state": 3}
    moments = {key: (rng.normal(size=n), rng.uniform(0.5, 3, n)) for key, n in sizes.items()}
    moments["state"][0][0], moments["state"][1][0] = 0.02, 0.0 if seed else 5.0  # to the floor
    return moments


def observations(count: int = 6) -> dict:
    torch.manual_seed(3)
    return {
        "camera": torch.randint(256, (count, 16, 16, 3), dtype=torch.uint8),
        "language": torch.randn(count, 8),
        "position": torch.randn(count, 2),
        "state": torch.randn(count, 3) * 0.05,
    }


def test_the_limit_by_hand():
    x = torch.tensor([-12.0, -10.0, -3.3, 0.0, 9.99, 10.0, 11.0, 1e4], requires_grad=True)
    y = limit(x)
    expected = [-10 - math.log(3), -10, -3.3, 0, 9.99, 10, 10 + math.log(2), 10 + math.log(9991)]
    torch.testing.assert_close(y.detach(), torch.tensor(expected))
    assert torch.equal(y[2:6].detach(), x[2:6].detach())  # within, to the bit
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, torch.tensor([1 / 3, 1, 1, 1, 1, 1, 1 / 2, 1 / 9991]))


def test_states_beyond_the_limit_are_told_apart():
    normalizer = ObsNormalizer({"state": (1,)}).fit({"state": (np.zeros(1), np.full(1, 2.0))})
    at = normalizer({"state": torch.tensor([[24.0], [40.0], [-40.0]])})[:, 0]
    assert at[0] > CLIP and at[1] > at[0] + 1 and at[2] == -at[1]


@pytest.mark.parametrize("sizes", [{"heads": "separate"}, {"heads": "stacked", "ensemble": 3}])
def test_a_critic_stays_the_function_that_it_is(sizes):
    """Images and instruction, which follow the standardised numbers, are left alone."""
    torch.manual_seed(0)
    value = ValueFunction(SPEC, SHAPES, hidden=(16, 16), **sizes)
    value.encoder.normalizer.fit(stats(0))
    obs, act = observations(), torch.rand(6, 4, 2, 1) * 2 - 1
    with torch.no_grad():
        before, features = value(obs, act), value.encoder(obs)
        value.restandardise(stats(1))
        after, moved = value(obs, act), value.encoder(obs)
    assert float((features - moved)[:, :5].abs().max()) > 0.5
    assert torch.equal(features[:, 5:], moved[:, 5:])
    torch.testing.assert_close(before, after, atol=2e-5, rtol=1e-4)


def test_a_network_on_the_encoding_absorbs_the_change():
    torch.manual_seed(0)
    normalizer = ObsNormalizer({key: SHAPES[key] for key in ("position", "state")}).fit(stats(0))
    net, obs, rest = mlp(7, (8,), 2), observations(), torch.randn(6, 2)

    def out():
        with torch.no_grad():
            return net(torch.cat([normalizer(obs), rest], 1))

    before = out()
    net.absorb(normalizer.refit(stats(1)))
    torch.testing.assert_close(before, out(), atol=2e-5, rtol=1e-4)


def test_a_bound_is_kept():
    torch.manual_seed(0)
    value = ValueFunction(SPEC, {"state": (3,)}, hidden=(8,), heads="stacked", lipschitz_bound=0.5)
    wide = {"state": (np.zeros(3), np.full(3, 4.0))}  # inputs shrink, so weights would grow
    value.restandardise(wide)
    assert float(layer_sigmas(value).max()) <= 0.5 * (1 + 1e-3)
