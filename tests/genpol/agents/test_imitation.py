"""`Imitation` and the agent that is nothing else."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from toy_bandit import (
    SPEC,
    base_policy,
    critic,
    demonstrations,
    generator,
    learn,
    settings,
    states,
    transitions,
    win_rate,
)

from genpol.agents.bc import BC
from genpol.agents.imitation import Imitation, require_learnable
from genpol.policies.policy import load_policy
from offline.data.batch import IMAGINED, Batch
from offline.errors import InputError, SpecError
from offline.spec import ActionSpec


def weights(policy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.parameters()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def taken(batch: Batch, rows: list[int]) -> Batch:
    """These rows of a batch."""

    def picked(value):
        if isinstance(value, dict):
            return {key: v[rows] for key, v in value.items()}
        return None if value is None else value[rows]

    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(Batch)}
    return Batch(**{name: picked(value) for name, value in values.items()})


def imitation(policy=None, **changes) -> Imitation:
    return Imitation(policy or base_policy(), **{"lr": 1e-3, "ema": 0.99} | changes)


# -- one step


def test_a_step_is_adamw_on_the_mean_loss():
    batch, learner = demonstrations(16, generator()), imitation(weight_decay=0.1)
    policy = base_policy()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.1)
    loss = policy.loss(batch.obs, batch.act, generator(5)).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    metrics = learner.update(batch, generator(5))
    assert metrics["base/loss"] == loss
    assert metrics["base/grad_norm"] == norm
    for ours, theirs in zip(weights(learner.policy), weights(policy), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


def test_a_large_gradient_is_clipped():
    policy = base_policy()
    with torch.no_grad():
        policy.head.trunk.out.weight.mul_(100)
    learner = imitation(policy)
    metrics = learner.update(demonstrations(16, generator()), generator())
    left = torch.stack([p.grad.norm() for p in learner.policy.parameters()]).norm()
    assert metrics["base/grad_norm"] > 10
    assert left == pytest.approx(1, abs=1e-4)


def test_only_rows_known_to_have_succeeded_weigh():
    batch = demonstrations(5, generator())
    batch = dataclasses.replace(batch, success=torch.tensor([1.0, 0.0, math.nan, 1.0, 0.0]))
    filtered, plain = imitation(filter="success"), imitation()
    metrics = filtered.update(batch, generator(5))
    assert metrics == plain.update(taken(batch, [0, 3]), generator(5))
    assert same(filtered.policy, plain.policy)
    assert not same(filtered.policy, base_policy())


def test_what_is_imagined_is_not_imitated():
    batch = demonstrations(5, generator())
    mixed = dataclasses.replace(batch, key=torch.tensor([3, IMAGINED, -1, IMAGINED, 0]))
    learner, plain = imitation(), imitation()
    metrics = learner.update(mixed, generator(5))
    assert metrics == plain.update(taken(batch, [0, 2, 4]), generator(5))
    assert same(learner.policy, plain.policy)
    nothing_real = dataclasses.replace(batch, key=torch.full((5,), IMAGINED))
    assert learner.update(nothing_real, generator(5)) == {"base/loss": 0, "base/grad_norm": 0}
    assert same(learner.policy, plain.policy)


def test_a_batch_without_success_changes_nothing():
    learner = imitation(filter="success")
    learner.update(demonstrations(16, generator()), generator())
    before = copy.deepcopy(learner.state_dict())
    batch = dataclasses.replace(
        demonstrations(2, generator()), success=torch.tensor([0.0, math.nan])
    )
    metrics = learner.update(batch, generator())
    assert metrics == {"base/loss": 0, "base/grad_norm": 0}
    after = learner.state_dict()
    assert after["steps"] == before["steps"] == 1
    for part in ("policy", "average"):
        assert all(torch.equal(after[part][name], before[part][name]) for name in before[part])


@pytest.mark.parametrize(("cloned", "decay"), [({}, 1 / 10), ({"steps": 4000}, 0.99)])
def test_the_average_follows_quickly_only_from_initial_weights(cloned, decay):
    policy = base_policy()
    policy.meta.update(cloned)
    learner = imitation(policy)
    learner.update(demonstrations(16, generator()), generator())
    for old, new, average in zip(
        weights(policy), weights(learner.policy), weights(learner.average), strict=True
    ):
        torch.testing.assert_close(average, decay * old + (1 - decay) * new)


# -- what is left alone


def test_a_loaded_policy_is_trained_on_a_copy(tmp_path):
    base_policy().save(tmp_path)
    loaded = load_policy(tmp_path)
    learner = imitation(loaded)
    average = learner.average
    learner.update(demonstrations(16, generator()), generator())
    assert same(loaded, base_policy())
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not same(learner.policy, loaded)
    assert learner.average is average
    assert not average.training
    assert not any(p.requires_grad for p in average.parameters())


def test_a_learning_rate_of_zero_freezes():
    learner = imitation(lr=0)
    before = weights(learner.average)
    assert learner.frozen
    assert learner.update(demonstrations(16, generator()), generator()) == {}
    assert learner.policy is learner.average
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner.average), strict=True))
    other = imitation(base_policy(seed=1), lr=0)
    other.load_state_dict(learner.state_dict())
    assert same(other.average, learner.average)


def test_a_black_box_stays_what_it_is():
    class Box:
        spec = SPEC

    box = Box()
    learner = imitation(box)
    assert learner.frozen
    assert learner.policy is learner.average is box
    assert learner.update(demonstrations(16, generator()), generator()) == {}
    learner.load_state_dict(learner.state_dict())


# -- going on


def test_it_goes_on_bit_for_bit():
    learner, draw = imitation(), generator(2)
    for _ in range(3):
        learner.update(demonstrations(16, draw), draw)
    state, drawn = copy.deepcopy(learner.state_dict()), draw.get_state()
    for _ in range(3):
        learner.update(demonstrations(16, draw), draw)
    again = imitation(base_policy(seed=1))
    again.load_state_dict(state)
    draw.set_state(drawn)
    for _ in range(3):
        again.update(demonstrations(16, draw), draw)
    assert same(again.policy, learner.policy)
    assert same(again.average, learner.average)
    assert not same(again.policy, again.average)


# -- refusals


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"lr": -1.0}, "learning rate"),
        ({"ema": 1.0}, "EMA decay"),
        ({"filter": "sucess"}, 'unknown filter "sucess". Did you mean "success"?'),
    ],
)
def test_settings_out_of_range_are_refused(wrong, text):
    with pytest.raises(InputError, match=text.replace("?", r"\?")):
        imitation(**wrong)


def test_a_base_policy_that_does_not_fit_is_refused():
    with pytest.raises(SpecError, match="H=3, the critic's H=1: pass --action-chunk 3"):
        require_learnable(SPEC, base_policy(spec=SPEC.with_chunk(3)))
    other = ActionSpec.from_bounds([-1.0, -1.0], [1.0, 2.0])
    with pytest.raises(SpecError, match="dimension 1"):
        BC(base_policy(spec=other), critic(), settings())


# -- BC


def test_online_imitation_copies_the_data_or_only_its_successes():
    rates = {}
    for name in ("all", "success"):
        agent = BC(base_policy(), critic(), settings(base_filter=name))
        learn(agent, 400)
        rates[name] = win_rate(agent.acting())
    assert abs(rates["all"] - 0.5) < 0.08
    assert rates["success"] > 0.95


def test_bc_is_its_average_policy_and_has_no_critic(tmp_path):
    value = critic()
    agent, before = BC(base_policy(), value, settings()), weights(value)
    assert agent.update_critic(transitions(8, generator()), generator()) == {}
    assert all(torch.equal(a, b) for a, b in zip(before, weights(value), strict=True))
    agent.update_policy(demonstrations(8, generator()), generator())
    assert agent.acting() is agent.evaluating() is agent.base.average
    agent.save(tmp_path)
    obs = states(4, generator())
    loaded, ours = load_policy(tmp_path), agent.evaluating()
    assert torch.equal(loaded.sample(obs, 2, generator()), ours.sample(obs, 2, generator()))
    again = BC(base_policy(seed=1), critic(), settings())
    again.load_state_dict(agent.state_dict())
    assert torch.equal(again.acting().sample(obs, 2, generator()), ours.sample(obs, 2, generator()))
