import copy
import math
from dataclasses import replace

import pytest
import torch
from toy_steps import LAYOUT, first, generator, pendulum

import offline.models.dynamics
from offline.models.dynamics import Dynamics
from offline.models.world_model import StateLayout


def make(seed=0, **options):
    torch.manual_seed(seed)
    options = {"hidden": (16, 16), "ensemble": 4, "elites": 3} | options
    return Dynamics(LAYOUT, 1, **options)


# -- members


@pytest.mark.parametrize("looped", [False, True])
def test_members_together_are_members_one_by_one(looped, monkeypatch):
    monkeypatch.setattr(offline.models.dynamics, "SMALL", 0 if looped else 10**18)
    model = make(probabilistic=True)
    x = torch.randn(4, 50, 3, generator=generator())
    together = model.outputs(x)
    for e in range(4):
        alone = make(ensemble=1, probabilistic=True)
        with torch.no_grad():
            for mine, all_of_them in zip(alone.parameters(), model.parameters(), strict=True):
                mine.copy_(all_of_them[e : e + 1])
        one = alone.outputs(x[e : e + 1])
        torch.testing.assert_close(one.mean[0], together.mean[e])
        torch.testing.assert_close(one.log_var[0], together.log_var[e])
        torch.testing.assert_close(one.logit[0], together.logit[e])


@pytest.mark.parametrize("size", [8, 200])  # 200: by oneDNN where there is one
def test_both_ways_have_the_same_gradients(size):
    model = make(hidden=(size, size))
    x = torch.randn(4, 256, 3, generator=generator())
    gradients = []
    for way in (model._looped, model._batched):
        model.zero_grad()
        way(x).sin().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_shapes_and_the_bounds_of_the_variance():
    model = make(probabilistic=True)
    out = model.outputs(1e3 * torch.randn(4, 20, 3, generator=generator()))
    assert out.mean.shape == out.log_var.shape == (4, 20, 3) and out.logit.shape == (4, 20)
    softness = math.log(2)  # softplus(0): by as much a bound gives way, at most
    assert out.log_var.min() >= -10 and out.log_var.max() <= 0.5 + softness
    assert make().outputs(torch.zeros(4, 5, 3)).log_var is None


# -- units


def test_no_reward_is_predicted_that_the_data_does_not_know():
    model, steps = make(), pendulum(50)
    model.normalize_by(replace(steps, reward=-(steps.reward > steps.reward.median()).float()))
    for shift, known in ((100.0, 0.0), (-100.0, -1.0)):
        with torch.no_grad():
            model.biases[-1].fill_(shift)
        assert model.predict(steps.state, steps.act, generator()).reward.unique() == known


def test_units_by_hand():
    model, steps = make(), pendulum(500)
    model.normalize_by(steps)
    x = model.inputs(steps.state, steps.act)
    torch.testing.assert_close(x[:, :2].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x[:, :2].std(0, correction=0), torch.ones(2))
    assert torch.equal(x[:, 2:], steps.act)
    target = model.targets(steps)
    torch.testing.assert_close(target.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(target.std(0, correction=0), torch.ones(3))
    change = (steps.next_state - steps.state).std(0, correction=0)
    torch.testing.assert_close(model.delta_std, change)
    torch.testing.assert_close(model.reward_std, steps.reward.std(correction=0))
    far, farther = (model.inputs(steps.state + shift, steps.act)[:, :2] for shift in (1e4, 1e6))
    assert (far > 10).all() and (far < farther).all() and (farther < 25).all()


def test_what_does_not_change_is_not_blown_up():
    model, steps = make(), pendulum(500)
    steps.next_state[:, 0] = steps.state[:, 0] + 1e-7 * steps.next_state[:, 0]
    steps.reward.fill_(-1.0)
    model.normalize_by(steps)
    assert model.targets(steps)[:, [0, 2]].abs().max() < 1e-3
    predicted = model.predict(steps.state, steps.act, generator())
    torch.testing.assert_close(predicted.reward, steps.reward)


# -- a step


def knows_all(**options):
    """Each member e predicts, of anything: standardised change (e, -e), reward e, no end."""
    model = make(**options)
    with torch.no_grad():
        for param in (*model.weights, *model.biases):
            param.zero_()
        for e in range(4):
            model.biases[-1][e, :3] = torch.tensor([e, -e, e])
            model.biases[-1][e, -1] = -1.0
    model.target_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    model.target_std.copy_(torch.tensor([1.0, 10.0, 100.0]))
    return model


def test_a_prediction_by_hand():
    model, steps = knows_all(ensemble=4), pendulum(400)
    model.elites.copy_(torch.tensor([0, 2, 3]))
    predicted = model.predict(steps.state, steps.act, generator())
    member = (predicted.reward - 3) / 100
    counts = [int((member == e).sum()) for e in range(4)]
    assert counts[1] == 0 and sum(counts) == 400
    assert min(counts[e] for e in (0, 2, 3)) > 100  # a third each, drawn anew for each row
    change = torch.stack([1 + member, 2 - 10 * member], dim=1)
    torch.testing.assert_close(predicted.next_state, steps.state + change)
    assert predicted.terminated.dtype == torch.bool and not predicted.terminated.any()
    model.biases[-1].data[2, -1] = 1e-3
    again = model.predict(steps.state, steps.act, generator())
    assert torch.equal(again.terminated, member == 2)


def test_a_row_is_predicted_by_its_member_whatever_is_beside_it():
    model, steps = make(elites=1, probabilistic=False), pendulum(64)
    whole = model.predict(steps.state, steps.act, generator())
    few = model.predict(steps.state[:3], steps.act[:3], generator())
    torch.testing.assert_close(whole.next_state[:3], few.next_state)
    out = model.outputs(model.inputs(steps.state, steps.act).expand(4, -1, -1))
    torch.testing.assert_close(whole.next_state - steps.state, out.mean[0, :, :2])


def test_probabilistic_ones_sample():
    model = knows_all(probabilistic=True, elites=1)
    model.most_log_var.data.fill_(math.log(4.0) + 20)
    model.least_log_var.data.fill_(-20.0)
    model.biases[-1].data[:, 3:6] = math.log(4.0)
    state, act = torch.zeros(20_000, 2), torch.zeros(20_000, 1)
    predicted = model.predict(state, act, generator())
    whole = torch.cat([predicted.next_state, predicted.reward[:, None]], dim=1)
    torch.testing.assert_close(whole.std(0), torch.tensor([2.0, 20, 200]), rtol=0.03, atol=0)
    torch.testing.assert_close(whole.mean(0), torch.tensor([1.0, 2, 3]), rtol=0, atol=5.0)
    again = model.predict(state, act, generator())
    assert torch.equal(again.next_state, predicted.next_state)
    assert not torch.equal(model.predict(state, act, generator(1)).reward, predicted.reward)


def test_known_rules_are_used():
    def reward(state, act, next_state):
        return state[:, 0] + 2 * act[:, 0] + 3 * next_state[:, 1]

    model = make(reward=reward, terminated=lambda s, a, n: n[:, 0] > 0)
    model.biases[-1].data[:, -1] = 100.0  # a learnt end everywhere, not asked for
    steps = pendulum(100)
    predicted = model.predict(steps.state, steps.act, generator())
    following = predicted.next_state
    torch.testing.assert_close(predicted.reward, reward(steps.state, steps.act, following))
    assert torch.equal(predicted.terminated, following[:, 0] > 0)
    assert 0 < predicted.terminated.sum() < 100


def test_nothing_and_a_single_row():
    model, steps = make(), pendulum(4)
    for count in (0, 1):
        few = first(steps, count)
        assert model.predict(few.state, few.act, generator()).next_state.shape == (count, 2)


def test_fewer_members_than_elites_and_copies():
    model = make(ensemble=1, elites=5)
    assert model.elites.tolist() == [0]
    other, steps = copy.deepcopy(model), pendulum(9)
    with torch.no_grad():
        model.biases[-1].add_(1)
    a, b = (m.predict(steps.state, steps.act, generator()).reward for m in (model, other))
    torch.testing.assert_close(a, b + 1)


def test_a_wide_state():
    model = Dynamics(StateLayout({"a": 100, "b": 11}), 3)
    predicted = model.predict(torch.zeros(7, 111), torch.zeros(7, 3), generator())
    assert predicted.next_state.shape == (7, 111)
