import copy
import dataclasses
import math

import pytest
import torch
from toy_steps import LAYOUT, first, generator, pendulum

from offline.errors import InputError
from offline.models.dynamics import Dynamics, Outputs
from offline.models.held_out import HELD_ROWS, split_rows
from offline.models.model_training import ModelTraining, Table, f1
from offline.models.world_model_config import WorldModelConfig


def make(seed=0, rules=None, probabilistic=False, **config):
    torch.manual_seed(seed)
    options = {"ensemble": 3, "elites": 2, "model_hidden": (32, 32), "model_updates": 200}
    config = WorldModelConfig(**(options | config))
    model = Dynamics(
        LAYOUT,
        1,
        config.model_hidden,
        config.ensemble,
        config.elites,
        probabilistic=probabilistic,
        **(rules or {}),
    )
    return ModelTraining(model, config)


def parameters(training):
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


# -- the loss


def table(count=6, weight=None):
    draws = generator(3)
    target = torch.randn(count, 3, generator=draws)
    return Table(torch.zeros(count, 3), target, torch.zeros(count), weight)


def out(count=6, log_var=None):
    mean = torch.randn(2, count, 3, generator=generator(4))
    return Outputs(mean, log_var, torch.full((2, count), -1000.0))


def test_losses_by_hand():
    plain = make()._losses(out(), table())
    errors = (out().mean - table().target) ** 2
    torch.testing.assert_close(plain, errors.mean(-1))
    weighted = make()._losses(out(), table(weight=torch.tensor([[2.0, 0.0, 1.0]]).expand(6, 3)))
    torch.testing.assert_close(weighted, (2 * errors[..., 0] + errors[..., 2]) / 3)
    log_var = torch.full((2, 6, 3), math.log(4.0))
    likelihood = make(probabilistic=True)._losses(out(log_var=log_var), table())
    normal = torch.distributions.Normal(out().mean, 2.0)
    expected = -normal.log_prob(table().target) - math.log(2 * math.pi) / 2
    torch.testing.assert_close(likelihood, expected.mean(-1))


def test_what_is_known_is_left_out():
    def rule(state, act, following):
        raise AssertionError("not asked for while training")

    known = make(rules={"reward": rule, "terminated": rule})
    some = dataclasses.replace(out(), logit=torch.zeros(2, 6))
    errors = (some.mean - table().target) ** 2
    torch.testing.assert_close(known._losses(some, table()), errors[..., :2].mean(-1))
    torch.testing.assert_close(
        make()._losses(some, table()), errors.mean(-1) + math.log(2)
    )  # a coin is no help
    metrics = known.fit(pendulum(300), generator())
    assert not {"model/reward_mse", "model/termination_f1"} & set(metrics)
    before = make(rules={"reward": rule}).model.biases[-1][:, 2]
    assert torch.equal(known.model.biases[-1][:, 2], before)  # never learnt


def test_unit_weights_are_plain_squared_error_exactly():
    plain, ones, asked = make(), make(), make()
    steps, seen = pendulum(600), []

    def weights(every):
        assert torch.equal(asked.model.delta_std, plain.model.delta_std)  # its units are known
        seen.append(len(every))
        return torch.ones_like(every.state)

    metrics = plain.fit(steps, generator())
    assert metrics == ones.fit(steps, generator(), torch.ones(600, 2))
    assert metrics == asked.fit(steps, generator(), weights)
    assert torch.equal(parameters(plain), parameters(ones))
    assert torch.equal(parameters(plain), parameters(asked))
    assert seen == [600]


def test_weights_decide_what_a_small_model_learns():
    """One unit that must choose between two dimensions: it learns the one that counts."""
    errors = []
    steps = pendulum(2000)
    for column in (0, 1):
        weight = torch.full((2000, 2), 1e-3)
        weight[:, column] = 1.0
        training = make(model_hidden=(2,), ensemble=1, model_updates=600, model_lr=1e-2)
        training.fit(steps, generator(), weight)
        held = training._table(pendulum(500, seed=1), torch.arange(500), None)
        error = training.model.outputs(held.x[None]).mean[0] - held.target
        errors.append(error[:, :2].square().mean(0))
    assert errors[0][0] < 0.7 * errors[1][0] and errors[1][1] < 0.7 * errors[0][1]


def test_weights_that_cannot_be():
    with pytest.raises(ValueError, match="pass none for a likelihood"):
        make(probabilistic=True).fit(pendulum(300), generator(), torch.ones(300, 2))
    with pytest.raises(ValueError, match=r"weights are \(300, 2\)"):
        make().fit(pendulum(300), generator(), torch.ones(300))


# -- learning


@pytest.mark.parametrize("probabilistic", [False, True])
def test_a_nonlinear_system_is_learnt(probabilistic):
    sizes = {"model_updates": 400, "model_lr": 3e-3, "model_hidden": (64, 64)}
    training = make(probabilistic=probabilistic, **sizes)
    metrics = training.fit(pendulum(3000), generator())
    assert metrics["model/holdout_mse"] < 0.01
    # A likelihood gives up where it is content with a large variance; squared error got 0.01.
    assert metrics["model/reward_mse"] < (0.1 if probabilistic else 0.03)
    assert metrics["model/termination_f1"] > 0.9 and metrics["model/disagreement"] < 0.2
    fresh = pendulum(1000, seed=9)
    predicted = training.model.predict(fresh.state, fresh.act, generator())
    unexplained = (predicted.next_state - fresh.next_state).square().mean(0)
    assert (unexplained / (fresh.next_state - fresh.state).var(0)).max() < 0.03
    assert (predicted.reward - fresh.reward).square().mean() < 0.15 * fresh.reward.var()
    seen, truth = predicted.terminated, fresh.terminated > 0
    assert 0.05 < truth.float().mean() < 0.5
    assert f1(seen, truth) > 0.9


def test_noise_is_calibrated():
    steps = pendulum(4000, noise=0.5)
    # the reward follows from the noise, so that only what is learnt of the state tells
    rules = {"reward": lambda s, a, n: n[:, 0], "terminated": lambda s, a, n: n[:, 0] > 9}
    sizes = {"model_updates": 500, "model_lr": 3e-3, "model_hidden": (64, 64)}
    training = make(rules=rules, probabilistic=True, **sizes)
    metrics = training.fit(steps, generator())
    assert abs(metrics["model/calibration_1"]) < 0.06
    assert abs(metrics["model/calibration_2"]) < 0.04
    # the noise is known to grow with the angle
    fresh = pendulum(2000, seed=5, noise=0.5)
    said = training.model.outputs(training.model.inputs(fresh.state, fresh.act).expand(3, -1, -1))
    std = (said.log_var[training.model.elites].mean(0) / 2).exp()[:, :2] * training.model.delta_std
    truth = 0.5 * (0.2 + fresh.state[:, :1].abs())
    assert (std / truth).log().abs().mean() < 0.2
    predicted = training.model.predict(fresh.state, fresh.act, generator())
    clean = pendulum(2000, seed=5)
    noise = (predicted.next_state - clean.next_state) / truth
    torch.testing.assert_close(noise.std(0), torch.ones(2), rtol=0.25, atol=0)


def test_rounding_free_constants_are_learnt_at_once():
    steps = pendulum(400)
    steps.reward.fill_(-2.5)
    training = make()
    training.fit(steps, generator())
    predicted = training.model.predict(steps.state, steps.act, generator())
    torch.testing.assert_close(predicted.reward, steps.reward)


# -- early stopping and elites


def test_training_ends_when_nothing_gets_better():
    noise = pendulum(300)
    noise.next_state[:] = noise.state + torch.randn(300, 2, generator=generator(1))
    noise.reward[:] = torch.randn(300, generator=generator(2))
    training = make(model_updates=5000, model_patience=3, model_hidden=(64, 64))
    metrics = training.fit(noise, generator())
    assert metrics["model/updates"] < 2000
    held = training._table(noise, torch.arange(300), None).take(
        split_rows(torch.arange(300), 0.1)[1]
    )
    best = training._held_out_loss(held)
    # the best weights are kept, not the last ones, which know the training steps by heart
    assert best[training.model.elites].mean() == metrics["model/holdout_loss"]
    assert metrics["model/holdout_mse"] < 1.5
    again = training.fit(noise, generator(1))
    assert again["model/holdout_loss"] <= metrics["model/holdout_loss"] + 1e-6  # never worse
    assert again["model/epochs"] >= 3


def test_elites_are_the_best_on_held_out_steps():
    training, steps = make(ensemble=5, elites=2, model_updates=100), pendulum(500)
    with torch.no_grad():  # members that start far off, which a short training does not make up
        for e in (0, 2, 3):
            training.model.biases[-1][e, :3] = 30.0
    metrics = training.fit(steps, generator())
    assert training.model.elites.tolist() == [1, 4]
    keys = torch.arange(500)
    held = training._table(steps, keys, None).take(split_rows(keys, 0.1)[1])
    losses = training._held_out_loss(held)
    assert losses[[0, 2, 3]].min() > losses[[1, 4]].max()
    assert metrics["model/holdout_loss"] == pytest.approx(float(losses[[1, 4]].mean()))


def test_each_member_keeps_its_own_best():
    """A member that diverges during training is as good as it ever was afterwards."""
    training, steps = make(model_updates=50), pendulum(300)
    training.fit(steps, generator())
    before = parameters(training)
    training.optimizer.param_groups[0]["lr"] = training.optimizer.param_groups[1]["lr"] = 10.0
    training.fit(steps, generator())
    assert torch.equal(parameters(training), before)


def test_members_see_batches_of_their_own():
    training = make(model_updates=40)
    with torch.no_grad():
        for param in training.model.parameters():
            param.copy_(param[:1].expand_as(param))
    training.fit(pendulum(400), generator())
    last = training.model.weights[-1]
    assert not torch.allclose(last[0], last[1], atol=1e-4)


def test_the_budget_is_kept():
    metrics = make(model_updates=17, model_patience=100).fit(pendulum(5000), generator())
    assert metrics["model/updates"] == 17 and metrics["model/epochs"] == 17  # one update each


# -- what is held out


def test_held_out_steps_stay_held_out():
    keys = torch.arange(2000)
    held = set(split_rows(keys, 0.1)[1].tolist())
    assert 150 < len(held) < 250
    for count in (50, 300, 1999):
        train, test = split_rows(keys[:count], 0.1)
        assert set(test.tolist()) == {row for row in held if row < count}
        assert len(train) + len(test) == count
    shifted = split_rows(keys[700:], 0.1)[1] + 700  # the oldest are gone
    assert set(shifted.tolist()) == {row for row in held if row >= 700}


def test_large_tables_hold_out_a_part_and_train_on_none_of_the_rest():
    train, test = split_rows(torch.arange(100_000), 0.1)
    assert len(test) == HELD_ROWS and 89_000 < len(train) < 91_000
    more = split_rows(torch.arange(120_000), 0.1)
    assert not set(more[0].tolist()) & set(test.tolist())


def test_training_never_sees_held_out_steps():
    """However wrong they are, they change nothing but the metrics."""
    steps, keys = pendulum(500), torch.arange(500)
    wrong = copy.deepcopy(steps)
    wrong.next_state[split_rows(keys, 0.1)[1]] += 1e3
    fitted = [make(model_updates=20, model_patience=20) for _ in range(2)]
    states = []
    for training, data in zip(fitted, (steps, wrong), strict=True):
        training.fit(data, generator())
        states.append([v["exp_avg"] for v in training.optimizer.state_dict()["state"].values()])
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(fitted[0].model.target_mean, fitted[1].model.target_mean)


def test_too_few_steps():
    with pytest.raises(InputError, match="2 steps are too few"):
        make().fit(pendulum(2), generator())


# -- going on


@pytest.mark.parametrize("probabilistic", [False, True])
def test_resuming_is_bit_for_bit(probabilistic):
    whole, draws = make(probabilistic=probabilistic), generator()
    whole.fit(pendulum(300), draws)
    state, drawn = copy.deepcopy(whole.state_dict()), draws.get_state()
    metrics = whole.fit(pendulum(500), draws)
    other, again = make(seed=7, probabilistic=probabilistic), generator(9)
    again.set_state(drawn)
    other.load_state_dict(state)
    assert other.fit(pendulum(500), again) == metrics
    assert torch.equal(parameters(whole), parameters(other))
    assert whole.model.elites.tolist() == other.model.elites.tolist()
    steps = pendulum(50, seed=3)
    a, b = (t.model.predict(steps.state, steps.act, generator()) for t in (whole, other))
    assert torch.equal(a.next_state, b.next_state) and torch.equal(a.reward, b.reward)


def test_a_state_before_any_training():
    one, other = make(), make(seed=7)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    steps = pendulum(300)
    assert one.fit(steps, generator()) == other.fit(steps, generator())


def test_units_follow_the_data():
    training = make(model_updates=20)
    steps = pendulum(600)
    training.fit(first(steps, 200), generator())
    before = training.model.delta_std.clone()
    training.fit(steps, generator())
    train = split_rows(torch.arange(600), 0.1)[0]
    change = (steps.next_state - steps.state)[train].std(0, correction=0)
    torch.testing.assert_close(training.model.delta_std, change)
    assert not torch.equal(before, change)


def test_divergence_is_said():
    steps = pendulum(300)
    steps.next_state[5] = float("nan")
    with pytest.raises(InputError, match="Lower --model-lr"):
        make().fit(steps, generator())


def test_f1_by_hand():
    truth = torch.tensor([True, True, False, False])
    assert f1(torch.tensor([[True, False, True, False]]), truth) == 0.5
    assert f1(truth[None], truth) == 1.0 and f1(~truth[None], truth) == 0.0
    nothing = torch.zeros(4, dtype=torch.bool)
    assert f1(nothing[None], nothing) == 1.0
