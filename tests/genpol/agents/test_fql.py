"""FQL: targets and objective by hand, an optimum in closed form, and a bandit."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from toy_bandit import (
    ARM,
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

from genpol.agents.fql import FQL
from genpol.policies.policy import load_policy
from offline.critics.value import ValueFunction


def agent(seed: int = 0, *, normalize_q: bool = True, **changes) -> FQL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FQL(base_policy(seed), critic(seed), settings(**changes), normalize_q=normalize_q)


@pytest.mark.slow
def test_it_finds_the_arm_that_cloning_finds_half_of_the_time():
    learner = agent(fql_alpha=0.15, lr=3e-3, target_rate=0.05)
    learn(learner, 700)
    assert abs(win_rate(learner.base.average) - 0.5) < 0.08
    assert win_rate(learner.acting()) > 0.9


def test_the_target_values_what_the_student_does_next():
    learner = agent(subset=ENSEMBLE)  # all heads, so none are drawn
    batch = transitions(64, generator())
    act = learner.student.sample(batch.next_obs, 1, generator(4))
    next_q = learner.critic.target(batch.next_obs, act)[..., 0]
    y = batch.reward + batch.discount * next_q.amin(0)
    q = learner.critic.value(batch.obs, batch.act[:, None])[..., 0]
    metrics = learner.update_critic(batch, generator(4))
    torch.testing.assert_close(metrics["critic/target"], y.mean())
    torch.testing.assert_close(metrics["critic/td_loss"], (0.5 * (q - y) ** 2).mean().detach())
    over = dataclasses.replace(batch, discount=torch.zeros(64))
    metrics = learner.update_critic(over, generator(4))
    torch.testing.assert_close(metrics["critic/target"], batch.reward.mean())


@pytest.mark.parametrize("normalize_q", [True, False])
def test_the_loss_by_hand_and_who_follows_it(normalize_q):
    learner = agent(normalize_q=normalize_q, fql_alpha=3.0, base_lr=0.0)
    batch, value = demonstrations(32, generator()), learner.critic.value
    noise = learner.student.draw_noise(32, generator(4))
    act = learner.student(batch.obs, noise)
    q = value(batch.obs, act.clamp(-1, 1)).mean(0)
    flow = learner.base.average.decode(batch.obs, noise)
    weight = 1 / q.abs().mean().detach() if normalize_q else 1.0
    loss = 3 * (act - flow).square().mean() - weight * q.mean()
    expected = torch.autograd.grad(loss, list(learner.student.parameters()))
    before = copy.deepcopy(value.state_dict())
    metrics = learner.update_policy(batch, generator(4))
    torch.testing.assert_close(metrics["actor/loss"], loss.detach())
    for param, grad in zip(learner.student.parameters(), expected, strict=True):
        torch.testing.assert_close(param.grad, grad)
    assert all(p.grad is None for p in value.parameters())
    assert all(torch.equal(before[name], new) for name, new in value.state_dict().items())


class Quadratic:
    """Q(s, a) = -k sum_D (a - ARM)^2, in place of the critic."""

    def __init__(self, steepness: float) -> None:
        self.steepness = steepness

    def encode(self, obs):
        return obs["state"]

    def score(self, features, act):
        return -self.steepness * (act - ARM).square().sum((-1, -2))[None]


def test_it_settles_where_distance_and_value_balance():
    learner = agent(normalize_q=False, fql_alpha=2.0, base_lr=0.0, lr=3e-3)
    learner.critic.value = Quadratic(0.5)
    draw = generator(1)
    for _ in range(600):
        learner.update_policy(demonstrations(64, draw), draw)
    obs, noise = states(200, draw), learner.student.draw_noise(200, draw)
    flow = learner.base.average.decode(obs, noise)
    # d/da [alpha/D (a - flow)^2 + k (a - ARM)^2] = 0 with alpha/D = 1, k = 1/2
    optimum = (flow + 0.5 * ARM) / 1.5
    error = (learner.student.decode(obs, noise) - optimum).square().mean().sqrt()
    assert error < 0.07
    assert (flow - optimum).square().mean().sqrt() > 0.2


def test_before_the_first_step_flow_and_student_clone_the_data():
    learner, draw = agent(lr=2e-3), generator(1)
    before = copy.deepcopy(learner.critic.value.state_dict())
    for _ in range(300):
        metrics = learner.pretrain(demonstrations(64, draw), draw)
    assert set(metrics) == {"base/loss", "base/grad_norm", "actor/distill_loss"}
    for policy in (learner.base.average, learner.acting()):
        assert abs(win_rate(policy) - 0.5) < 0.12
    after = learner.critic.value.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_distilling_leaves_the_flow_alone():
    learner, draw = agent(lr=2e-3), generator(1)
    before = copy.deepcopy(learner.base.state_dict())
    losses = [
        float(learner.distill(demonstrations(64, draw), draw)["actor/distill_loss"])
        for _ in range(150)
    ]
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])
    after = learner.base.state_dict()
    for part in ("policy", "average"):
        assert all(torch.equal(before[part][name], after[part][name]) for name in before[part])


def test_it_goes_on_bit_for_bit():
    learner, draw = agent(), generator(2)
    learn(learner, 3, draw=draw, batches=transitions)
    state, drawn = copy.deepcopy(learner.state_dict()), draw.get_state()
    learn(learner, 3, draw=draw, batches=transitions)
    again = agent(seed=1)
    again.load_state_dict(state)
    draw.set_state(drawn)
    learn(again, 3, draw=draw, batches=transitions)
    for ours, theirs in (
        (again.student, learner.student),
        (again.base.average, learner.base.average),
        (again.critic.value, learner.critic.value),
        (again.critic.target, learner.critic.target),
    ):
        others = theirs.state_dict()
        assert all(torch.equal(tensor, others[name]) for name, tensor in ours.state_dict().items())


def test_what_is_saved_is_what_acts(tmp_path):
    learner, obs = agent(), states(4, generator())
    learner.save(tmp_path)
    for folder, ours in (("policy", learner.evaluating()), ("flow", learner.base.average)):
        loaded = load_policy(tmp_path / folder)
        assert torch.equal(loaded.sample(obs, 2, generator()), ours.sample(obs, 2, generator()))
    act = torch.zeros(4, 2, 1, 2)
    loaded = ValueFunction.load(tmp_path / "value")
    torch.testing.assert_close(loaded(obs, act), learner.critic.target(obs, act))
