"""The online critic: its target by hand, a chain it must learn, draws of heads, resuming."""

from __future__ import annotations

import pytest
import torch
from toy_data import spec

from offline.critics.td import Subset, TDCritic, td_target
from offline.critics.value import ValueFunction
from offline.data.batch import Batch


def value_of(ensemble=4, heads="stacked"):
    torch.manual_seed(0)
    return ValueFunction(spec(), {"state": (1,)}, hidden=(16, 16), ensemble=ensemble, heads=heads)


def batch_of(state, reward, following, discount):
    count = len(state)
    return Batch(
        obs={"state": torch.tensor(state)[:, None]},
        act=torch.zeros(count, 1, 1),
        reward=torch.tensor(reward),
        next_obs={"state": torch.tensor(following)[:, None]},
        discount=torch.tensor(discount),
        mc_return=torch.zeros(count),
        success=torch.ones(count),
    )


def test_target_by_hand():
    """A terminated row has discount 0 and is its reward; a truncated one bootstraps."""
    reward, next_value = torch.tensor([-1.0, -1.0, 0.0]), torch.tensor([-8.0, -8.0, 5.0])
    next_value.requires_grad_()
    y = td_target(reward, torch.tensor([0.9, 0.0, 0.5]), next_value)
    torch.testing.assert_close(y, torch.tensor([-8.2, -1.0, 2.5]))
    assert not y.requires_grad


@pytest.mark.parametrize("heads", ["stacked", "separate"])
def test_a_two_state_chain(heads):
    """0 -> 1 -> end, reward -1 and then 2, gamma .5: Q(1) = 2, Q(0) = -1 + .5 * 2 = 0."""
    critic = TDCritic(value_of(heads=heads), lr=1e-2, target_rate=0.1)
    batch = batch_of([0.0, 1.0], [-1.0, 2.0], [1.0, 1.0], [0.5, 0.0])
    generator = torch.Generator().manual_seed(0)
    few = Subset(critic.target, 2, generator)
    for _ in range(400):
        with torch.no_grad():
            next_value = few(batch.next_obs, batch.act[:, None])[..., 0].amin(0)
        metrics = critic.update(batch, next_value, generator)
    with torch.no_grad():
        q = critic.value(batch.obs, batch.act[:, None])[..., 0]
    torch.testing.assert_close(q, torch.tensor([0.0, 2.0]).expand(4, 2), atol=0.05, rtol=0)
    assert float(metrics["critic/td_loss"]) < 1e-3 and float(metrics["critic/q_std"]) < 0.05
    assert float(metrics["critic/target"]) == pytest.approx(1.0, abs=0.05)


def test_a_time_limit_bootstraps_for_ever():
    """One state that ends only by the clock, reward -1, gamma .5: Q = -2, not -1."""
    critic = TDCritic(value_of(), lr=1e-2, target_rate=0.2)
    batch = batch_of([0.0], [-1.0], [0.0], [0.5])
    for _ in range(400):
        with torch.no_grad():
            next_value = critic.target(batch.next_obs, batch.act[:, None])[..., 0].amin(0)
        critic.update(batch, next_value, torch.Generator())
    with torch.no_grad():
        q = critic.target(batch.obs, batch.act[:, None])
    torch.testing.assert_close(q, torch.full((4, 1, 1), -2.0), atol=0.05, rtol=0)


def test_the_target_moves_by_the_rate_and_learns_nothing_itself():
    critic = TDCritic(value_of(), lr=1e-2, target_rate=0.25)
    before = {name: tensor.clone() for name, tensor in critic.target.named_parameters()}
    critic.update(batch_of([0.0], [1.0], [0.0], [0.0]), torch.zeros(1), torch.Generator())
    online = dict(critic.value.named_parameters())
    moved = 0
    for name, tensor in critic.target.named_parameters():
        expected = before[name] + 0.25 * (online[name] - before[name])
        torch.testing.assert_close(tensor, expected)
        assert tensor.grad is None and not tensor.requires_grad
        moved += not torch.equal(tensor, before[name])
    assert moved >= 8 and not critic.target.training


def test_a_penalty_is_added_and_its_metrics_returned():
    def penalty(value, batch, generator):
        q = value(batch.obs, batch.act[:, None])
        return 100 * q.square().mean(), {"critic/penalty": q.detach().mean()}

    plain, pulled = (
        TDCritic(value_of(), lr=1e-2, target_rate=1.0, penalty=p) for p in (None, penalty)
    )
    batch = batch_of([0.0, 1.0], [5.0, 5.0], [0.0, 0.0], [0.0, 0.0])
    for _ in range(100):
        plain.update(batch, torch.zeros(2), torch.Generator())
        metrics = pulled.update(batch, torch.zeros(2), torch.Generator())
    with torch.no_grad():
        found = [c.value(batch.obs, batch.act[:, None]).mean().item() for c in (plain, pulled)]
    assert found[0] == pytest.approx(5, abs=0.2) and found[1] < 1 and "critic/penalty" in metrics


def test_draws_differ_and_are_reproducible():
    value, obs, act = value_of(6), {"state": torch.zeros(2, 1)}, torch.zeros(2, 3, 1, 1)
    every = value(obs, act)
    runs = []
    for _ in range(2):
        few = Subset(value, 2, torch.Generator().manual_seed(5))
        seen = []
        for _ in range(20):
            features = few.encode(obs)
            which = features.heads
            q = few.score(features, act)
            assert q.shape == (2, 2, 3) and which.unique().numel() == 2
            torch.testing.assert_close(q, every[which])
            few.encode(obs)  # somebody else asks; these features keep their heads
            torch.testing.assert_close(few.score(features, act), q)
            seen.append(tuple(which.tolist()))
        runs.append(seen)
    assert runs[0] == runs[1]
    assert len({frozenset(pair) for pair in runs[0]}) > 5
    assert {e for pair in runs[0] for e in pair} == set(range(6))


@pytest.mark.parametrize("count", [2, 4])
def test_a_second_opinion_is_by_other_heads(count):
    value, obs, act = value_of(6), {"state": torch.rand(2, 1)}, torch.zeros(2, 3, 1, 1)
    few, every = Subset(value, count, torch.Generator().manual_seed(5)), value(obs, act)
    for _ in range(20):
        features = few.encode(obs)
        others = few.second_opinion(features, act, disjoint=True)
        rest = [e for e in range(6) if e not in features.heads.tolist()]
        assert others.shape == (min(count, len(rest)), 2, 3)
        for q in others:
            assert any(torch.allclose(q, every[e], atol=1e-6) for e in rest)
    assert few.second_opinion(features, act, disjoint=False).shape == (count, 2, 3)


def test_a_subset_of_all_draws_nothing():
    value, obs, act = value_of(), {"state": torch.zeros(2, 1)}, torch.zeros(2, 3, 1, 1)
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    for count in (4, 9):
        few = Subset(value, count, generator)
        torch.testing.assert_close(few(obs, act), value(obs, act))
    assert torch.equal(generator.get_state(), before) and few.spec is value.spec


def test_training_goes_on_bit_for_bit():
    def updates(critic, generator, count):
        few = Subset(critic.target, 2, generator)
        for _ in range(count):
            state = torch.rand(8, generator=generator)
            batch = batch_of(state.tolist(), [-1.0] * 8, state.tolist(), [0.9] * 8)
            with torch.no_grad():
                next_value = few(batch.next_obs, batch.act[:, None])[..., 0].amin(0)
            critic.update(batch, next_value, generator)

    one, draws = TDCritic(value_of(), lr=1e-2, target_rate=0.1), torch.Generator().manual_seed(0)
    updates(one, draws, 5)
    saved = {name: _copied(state) for name, state in one.state_dict().items()}
    position = draws.get_state()
    updates(one, draws, 5)
    two = TDCritic(value_of(), lr=1e-2, target_rate=0.1)
    two.load_state_dict(saved)
    draws.set_state(position)
    updates(two, draws, 5)
    for network in ("value", "target"):
        mine, theirs = (getattr(c, network).state_dict() for c in (one, two))
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def _copied(tree):
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_copied(value) for value in tree]
    return tree.clone() if isinstance(tree, torch.Tensor) else tree
