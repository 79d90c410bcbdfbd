"""The diversity of heads: by hand on linear heads, and what it does to the minimum off the data."""

from __future__ import annotations

import math

import pytest
import torch
from toy_data import spec

from offline.critics.diversity import action_gradients, diversity, mean_cosine
from offline.critics.td import TDCritic
from offline.critics.value import ValueFunction
from offline.data.batch import Batch


def value_of(ensemble=2, heads="stacked", hidden=(4,), bound=None):
    torch.manual_seed(0)
    return ValueFunction(
        spec(2),
        {"state": (3,)},
        ensemble=ensemble,
        hidden=hidden,
        heads=heads,
        lipschitz_bound=bound,
    )


def batch_of(rows=16, seed=1, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(rows, 3, generator=generator)
    return Batch(
        obs={"state": state},
        act=(torch.rand(rows, 1, 2, generator=generator) * 2 - 1) * spread,
        reward=state[:, 0],
        next_obs={"state": state},
        discount=torch.zeros(rows),
        mc_return=state[:, 0],
        success=torch.ones(rows),
    )


def test_two_linear_heads_by_hand():
    """Action gradients (3, 0) and (1, 1): their cosine is 1 / sqrt 2, counted twice."""
    value = value_of(bound=100.0)
    with torch.no_grad():
        value.heads.obs_bias.fill_(50.0)  # every unit is on
        value.heads.weights[0].fill_(0.5)  # of 4 units: Q_e = 2 * (their common input)
        value.heads.first_layer()[1][:] = torch.tensor([[1.5, 0.0], [0.5, 0.5]])[:, None]
    batch = batch_of()
    gradients = action_gradients(value, batch.obs["state"], batch.act)
    expected = torch.tensor([[3.0, 0.0], [1.0, 1.0]])[:, None].expand(2, 16, 2)
    torch.testing.assert_close(gradients.detach(), expected)
    loss, metrics = diversity(0.7)(value, batch, torch.Generator())
    assert float(loss.detach()) == pytest.approx(0.7 * 2 / math.sqrt(2))  # 1 / (E - 1) is 1
    assert float(metrics["critic/gradient_cosine"]) == pytest.approx(1 / math.sqrt(2))


def test_it_is_the_published_sum_over_pairs():
    gradients = torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(0))
    unit = gradients / gradients.norm(dim=-1, keepdim=True)
    products = torch.einsum("ibd,jbd->bij", unit, unit) * (1 - torch.eye(5))
    published = products.sum((1, 2)).mean() / (5 - 1)
    torch.testing.assert_close(5 * mean_cosine(gradients), published)


def test_extremes():
    same = torch.ones(4, 2, 3)
    assert float(mean_cosine(same)) == pytest.approx(1)
    assert float(mean_cosine(torch.stack([same[0], -same[0]]))) == pytest.approx(-1)
    dead = torch.zeros(2, 2, 3, requires_grad=True)  # a head that ignores the action
    mean_cosine(dead).backward()
    assert float(mean_cosine(dead).detach()) == 0 and torch.isfinite(dead.grad).all()


@pytest.mark.parametrize("rest", [{"bound": 1.0}, {}, {"heads": "separate"}])
def test_action_gradients_are_autograds(rest):
    value, batch = value_of(3, hidden=(16, 8), **rest), batch_of(6)
    found = action_gradients(value, batch.obs["state"], batch.act)
    for e in range(3):
        act = batch.act.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(batch.obs, act[:, None])[e].sum(), [act])
        torch.testing.assert_close(found[e], gradient.flatten(1))


def test_it_spreads_the_heads_where_there_is_no_data():
    """Actions of the data are near 0: off them, heads differ more, and the minimum is lower."""
    spreads, minima = [], []
    far = batch_of(256, seed=1000, spread=1.0)
    for penalty in (None, diversity(0.5)):
        critic = TDCritic(value_of(5, hidden=(32, 32)), lr=3e-3, target_rate=0.1, penalty=penalty)
        for i in range(250):
            batch = batch_of(64, seed=i, spread=0.1)
            metrics = critic.update(batch, torch.zeros(64), torch.Generator())
        assert float(metrics["critic/td_loss"]) < 0.05
        with torch.no_grad():
            q = critic.value(far.obs, far.act[:, None])[..., 0]
        spreads.append(float(q.std(0).mean()))
        minima.append(float((q.amin(0) - far.reward).mean()))
    assert spreads[1] > 1.5 * spreads[0] and minima[1] < minima[0]
