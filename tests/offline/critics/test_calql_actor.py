"""Cal-QL's policy that imitates: its density by hand, what it learns, and both backups."""

from __future__ import annotations

import math

import pytest
import torch

from offline.critics.calql import next_value
from offline.critics.td import td_target
from offline.networks.heads import TanhGaussian


def test_the_density_of_an_action_is_that_of_its_draw():
    torch.manual_seed(0)
    policy = TanhGaussian(3, 2, (8,))
    features = torch.randn(5, 3)
    act, log_prob = policy.sample(features, 1, torch.Generator().manual_seed(1))
    found = policy.log_prob(features, act[:, 0], bound=0.9999)
    torch.testing.assert_close(found, log_prob[:, 0], rtol=1e-4, atol=1e-4)


def test_the_density_by_hand():
    """Mean 0 and std 1 before the tanh: log N(u) - log(1 - a^2) with u = atanh(a)."""
    policy = TanhGaussian(1, 1, (2,))
    for parameter in policy.parameters():
        torch.nn.init.zeros_(parameter)
    u = math.atanh(0.5)
    by_hand = -0.5 * u**2 - 0.5 * math.log(2 * math.pi) - math.log(1 - 0.25)
    found = policy.log_prob(torch.zeros(1, 1), torch.tensor([[0.5]]))
    assert found.item() == pytest.approx(by_hand, rel=1e-5)


def test_actions_at_the_bounds_have_a_finite_density():
    policy = TanhGaussian(1, 2, (4,))
    assert torch.isfinite(policy.log_prob(torch.zeros(1, 1), torch.tensor([[1.0, -1.0]]))).all()


def test_imitation_finds_the_datas_mean():
    torch.manual_seed(0)
    policy = TanhGaussian(1, 1, (16,))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    features = torch.ones(256, 1)
    act = 0.4 + 0.05 * torch.randn(256, 1)
    for _ in range(300):
        loss = -policy.log_prob(features, act).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn, _ = policy.sample(features[:1], 2000, torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(0.4, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.05, abs=0.02)


def test_backups_by_hand():
    """y = R + discount * min over heads of the max, or the mean, over the policy's actions."""
    next_q = torch.tensor([[[-3.0, -5.0]], [[-6.0, -1.0]]])
    reward, discount = torch.tensor([-1.0]), torch.tensor([0.5])
    best, mean = (next_value(next_q, backup) for backup in ("max", "mean"))
    assert td_target(reward, discount, best).item() == pytest.approx(-1 + 0.5 * -3)
    assert td_target(reward, discount, mean).item() == pytest.approx(-1 + 0.5 * -4)
