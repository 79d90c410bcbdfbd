"""IDQL: targets and state value by hand, a bandit, and streams that do not disturb each other."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from toy_bandit import (
    ENSEMBLE,
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

from genpol.agents.idql import IDQL
from genpol.policies.policy import load_policy
from offline.critics.value import ValueFunction


def agent(seed: int = 0, **changes) -> IDQL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return IDQL(base_policy(seed), critic(seed), settings(**changes))


@pytest.mark.slow
def test_the_best_of_n_finds_the_arm_that_cloning_finds_half_of_the_time():
    learner = agent()
    learn(learner, 400)
    assert abs(win_rate(learner.base.average) - 0.5) < 0.08
    assert win_rate(learner.acting()) > 0.9
    assert win_rate(learner.evaluating()) > 0.9


def test_losses_by_hand():
    learner = agent(subset=ENSEMBLE, expectile=0.8)  # all heads, so none are drawn
    batch, value = transitions(64, generator()), learner.critic.value
    now, after = (
        learner.state_value(value.encoder(obs))[:, 0] for obs in (batch.obs, batch.next_obs)
    )
    y = batch.reward + batch.discount * after
    u = learner.critic.target(batch.obs, batch.act[:, None])[..., 0].amin(0) - now
    loss = (torch.where(u < 0, 0.2, 0.8) * u**2).mean()
    expected = torch.autograd.grad(loss, list(learner.state_value.parameters()))
    metrics = learner.update_critic(batch, generator())
    torch.testing.assert_close(metrics["critic/expectile_loss"], loss.detach())
    torch.testing.assert_close(metrics["critic/v"], now.mean().detach())
    torch.testing.assert_close(metrics["critic/target"], y.mean().detach())
    for param, grad in zip(learner.state_value.parameters(), expected, strict=True):
        torch.testing.assert_close(param.grad, grad)
    over = dataclasses.replace(batch, discount=torch.zeros(64))
    metrics = learner.update_critic(over, generator())
    torch.testing.assert_close(metrics["critic/target"], batch.reward.mean())


def test_the_state_value_is_an_expectile_of_the_returns():
    """Of returns that are 0 or 1 as often, the expectile tau is tau itself."""
    learner, draw = agent(expectile=0.8, lr=2e-3), generator(1)
    for _ in range(700):
        learner.update_critic(demonstrations(64, draw), draw)
    v = learner.state_value(learner.critic.value.encoder(states(500, draw)))
    assert abs(v.mean() - 0.8) < 0.06


def test_acting_scores_n_proposals_of_the_average_policy():
    learner, obs = agent(num_candidates=5), states(3, generator())
    decision = learner.acting().decide(obs, generator(2))
    proposals = learner.base.average.sample(obs, 5, generator(2))
    assert torch.equal(decision.candidates, proposals)
    heads = decision.features.heads
    scores = learner.critic.target(obs, proposals)[heads].amin(0)
    torch.testing.assert_close(decision.scores, scores)
    assert torch.equal(decision.chosen, decision.scores.argmax(1))


def test_evaluation_changes_nothing_that_is_learnt():
    evaluated, plain = agent(), agent()
    for learner in (evaluated, plain):
        draw = generator(2)
        for _ in range(3):
            learn(learner, 1, draw=draw, batches=transitions)
            if learner is evaluated:
                win_rate(learner.evaluating(), 10)
    ours, theirs = (a.critic.value.state_dict() for a in (evaluated, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_goes_on_bit_for_bit():
    learner, draw, obs = agent(), generator(2), states(10, generator())

    def go_on(which: IDQL) -> torch.Tensor:
        learn(which, 3, draw=draw, batches=transitions)
        acts = (which.acting().sample(obs, 1, draw), which.evaluating().sample(obs, 1, draw))
        return torch.cat(acts)

    go_on(learner)
    state, drawn = copy.deepcopy(learner.state_dict()), draw.get_state()
    acts = go_on(learner)
    again = agent(seed=1)
    again.load_state_dict(state)
    draw.set_state(drawn)
    assert torch.equal(go_on(again), acts)
    for ours, theirs in (
        (again.state_value, learner.state_value),
        (again.base.policy, learner.base.policy),
        (again.critic.value, learner.critic.value),
        (again.critic.target, learner.critic.target),
    ):
        others = theirs.state_dict()
        assert all(torch.equal(tensor, others[name]) for name, tensor in ours.state_dict().items())


def test_policy_and_value_are_saved(tmp_path):
    learner, obs, act = agent(), states(4, generator()), torch.zeros(4, 2, 1, 2)
    learner.save(tmp_path)
    loaded, average = load_policy(tmp_path / "policy"), learner.base.average
    assert torch.equal(loaded.sample(obs, 2, generator()), average.sample(obs, 2, generator()))
    value = ValueFunction.load(tmp_path / "value")
    torch.testing.assert_close(value(obs, act), learner.critic.target(obs, act))
