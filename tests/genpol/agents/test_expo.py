"""EXPO on tasks of one decision, its edit objective by hand, and what it goes on from."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Generator

from genpol.agents.config import TrainConfig
from genpol.agents.deploy import load_trained
from genpol.agents.edit import EditLearner, EditPolicy
from genpol.agents.expo import EXPO
from genpol.agents.imitation import Imitation
from genpol.policies.architecture import Architecture
from genpol.policies.policy import ChunkPolicy
from offline.critics.value import ValueFunction
from offline.data.batch import Batch, join_batches
from offline.errors import InputError
from offline.spec import ActionSpec
from offline.types import Policy

SPEC = ActionSpec.from_bounds([-1.0], [1.0])
SMALL = TrainConfig(
    value_ensemble=4,
    hidden=(32, 32),
    action_chunk=1,
    num_candidates=8,  # of 4, one in 16 would all be of the wrong arm
    batch_size=128,
    lr=3e-3,
    target_rate=0.1,
    base_lr=2e-3,
    base_ema=0.98,
    init_temperature=0.01,
)
ARMS = 0.5  # demonstrations go to +-ARMS, half of them each


def value(seed: int = 0) -> ValueFunction:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ValueFunction(SPEC, {"state": (2,)}, hidden=(32, 32), ensemble=4, heads="stacked")


def flow(seed: int = 0) -> ChunkPolicy:
    sizes = Architecture(features=32, encoder_layers=1, width=32, denoising_steps=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ChunkPolicy("flow", SPEC, {"state": (2,)}, architecture=sizes)


def bandit(size: int, generator: Generator, best: float = ARMS) -> Batch:
    """One step each: demonstrators take either arm; reward falls with the distance to `best`."""
    obs = {"state": torch.rand(size, 2, generator=generator)}
    arm = ARMS * (2 * torch.randint(2, (size,), generator=generator).float() - 1)
    act = arm + 0.03 * torch.randn(size, generator=generator)
    return one_step(obs, act, -(act - best).abs())


def one_step(obs, act, reward) -> Batch:
    size = len(act)
    return Batch(
        obs=obs,
        act=act.view(size, 1, 1),
        reward=reward,
        next_obs=obs,
        discount=torch.zeros(size),
        mc_return=reward,
        success=torch.ones(size),
        key=torch.arange(size),
    )


def learn(agent: EXPO, steps: int, best: float = ARMS, online: bool = True) -> dict:
    """Half demonstrations, half what the agent itself does, as the loop would mix them."""
    draw, noise, metrics = Generator().manual_seed(0), Generator().manual_seed(1), {}
    for _ in range(steps):
        batch = bandit(64, draw, best)
        if online:
            obs = {"state": torch.rand(64, 2, generator=draw)}
            act = agent.acting().sample(obs, 1, draw)[:, 0, 0, 0]
            own = one_step(obs, act, -(act - best).abs())
            batch = join_batches([batch, own])
        metrics = agent.update_critic(batch, noise) | agent.update_policy(batch, noise)
    return metrics


def chosen(policy: Policy, count: int = 400) -> torch.Tensor:
    obs = {"state": torch.rand(count, 2, generator=Generator().manual_seed(5))}
    return policy.sample(obs, 1, Generator().manual_seed(6))[:, 0, 0, 0]


@pytest.fixture(scope="module")
def cloned() -> ChunkPolicy:
    """A flow that has learnt both arms."""
    imitation = Imitation(flow(), lr=3e-3, ema=0.99)
    draw, noise = Generator().manual_seed(0), Generator().manual_seed(1)
    for _ in range(1500):
        imitation.update(bandit(128, draw), noise)
    return imitation.average


def test_a_two_armed_bandit_where_cloning_is_at_half(cloned):
    agent = EXPO(cloned, value(), SMALL)
    learn(agent, 150, online=False)
    clone = chosen(agent.base.average)
    assert 0.35 < float((clone > 0).float().mean()) < 0.65
    assert float((clone.abs() - ARMS).abs().mean()) < 0.12  # both arms, nothing in between
    assert float((chosen(agent.evaluating()) > 0).float().mean()) > 0.95
    assert float((chosen(agent.acting()) > 0).float().mean()) > 0.9


def test_edits_go_where_no_demonstration_went(cloned):
    """The best action lies .2 beside the better arm; selection alone cannot get there."""
    settings = dataclasses.replace(SMALL, edit_scale=0.3)
    edited, selected = (
        EXPO(flow(), value(), settings),
        EXPO(flow(), value(), dataclasses.replace(settings, edits=0)),
    )
    learn(edited, 400, best=0.7)
    learn(selected, 100, best=0.7, online=False)
    far = (chosen(selected.evaluating()) - 0.7).abs().mean()
    near = (chosen(edited.evaluating()) - 0.7).abs().mean()
    assert near < 0.08 < 0.1 < far


def test_one_candidate_without_edits_is_the_base_policy():
    agent = EXPO(flow(), value(), dataclasses.replace(SMALL, num_candidates=1, edits=0))
    assert torch.equal(chosen(agent.acting()), chosen(agent.base.average))


def test_the_edit_objective_on_a_quadratic_value():
    """With Q = -(a~ - 1)^2 and temperature 0 the gradient to the move is -2 (a~ - 1) beta."""
    torch.manual_seed(0)
    policy = EditPolicy(2, 1, (8,), scale=0.5, clip=True)
    learner = EditLearner(policy, lr=1e-3, init_temperature=1e-12)
    features, act = torch.zeros(3, 2), torch.tensor([[[0.1]], [[-0.4]], [[0.3]]])
    seen = {}

    def score(edited):
        edited.retain_grad()
        seen["edited"] = edited
        return torch.stack([-(edited - 1).square().sum((2, 3))] * 2)

    before = [p.clone() for p in learner.params]
    metrics = learner.update(features, act, score, Generator().manual_seed(0))
    edited, move, _ = _same_draw(before, features, act)
    torch.testing.assert_close(seen["edited"], edited)
    torch.testing.assert_close(edited, act[:, None] + 0.5 * move)
    torch.testing.assert_close(metrics["edit/loss"], (edited - 1).square().mean())
    # d loss / d move = 2 (a~ - 1) * beta / 3; carried to the weights by autograd
    (move * (2 * (edited - 1) * 0.5 / 3).detach()).sum().backward()
    for given, wanted in zip(learner.params, _same_draw.policy.move.parameters(), strict=True):
        torch.testing.assert_close(given.grad, wanted.grad, atol=1e-6, rtol=1e-4)


def _same_draw(weights, features, act):
    """The move that a policy with these weights makes of the same noise."""
    policy = EditPolicy(2, 1, (8,), scale=0.5, clip=True)
    with torch.no_grad():
        for parameter, held in zip(policy.move.parameters(), weights, strict=True):
            parameter.copy_(held)
    _same_draw.policy = policy
    return policy(features, act[:, None], Generator().manual_seed(0))


def test_edits_are_clipped_or_as_released_not():
    torch.manual_seed(0)
    act = torch.full((50, 1, 2, 1), 0.95)
    for clip, most in ((True, 1.0), (False, 1.45)):
        policy = EditPolicy(2, 2, (8,), scale=0.5, clip=clip)
        edited, move, log_prob = policy(torch.zeros(50, 2), act, Generator().manual_seed(0), n=3)
        assert edited.shape == (50, 3, 2, 1) and log_prob.shape == (50, 3)
        edited, move = edited.detach(), move.detach()
        assert float(edited.max()) <= most and float(move.abs().max()) <= 1
        assert (float(edited.max()) > 1) is (not clip)
        assert float((edited - 0.95).abs().max()) <= 0.5 + 1e-6


def test_the_temperature_holds_the_entropy_that_was_asked_for():
    """Above its target the temperature falls, below it rises, by either way of counting."""
    for entropy_of, shift in (("unscaled", 0.0), ("released", 2 * math.log(0.1))):
        torch.manual_seed(0)
        policy = EditPolicy(2, 2, (8,), scale=0.1, clip=True)
        for side in (-1, 1):
            learner = EditLearner(
                policy, lr=1e-9, init_temperature=1.0, entropy_of=entropy_of, target_entropy=0.0
            )
            learner.target_entropy = shift + side * 50
            for group in learner.temperature_optimizer.param_groups:
                group["lr"] = 0.1
            metrics = learner.update(
                torch.zeros(9, 2), torch.zeros(9, 1, 2), lambda a: a.sum((2, 3))[None], Generator()
            )
            assert (float(metrics["edit/temperature"]) > 1) is (side > 0)
        plain = float(metrics["edit/entropy"]) - shift
        assert -3 < plain < 2 * math.log(2)  # two dimensions in (-1, 1)


def test_an_adaptive_scale_grows_towards_what_is_out_of_reach():
    settings = dataclasses.replace(
        SMALL, edit_scale=0.05, adaptive_edit_scale=True, edit_scale_lr=3e-3
    )
    agent = EXPO(flow(), value(), settings)
    start = float(agent.edit.policy.scale)
    metrics = learn(agent, 150, best=0.9)
    assert start == pytest.approx(0.05)
    assert 0.1 < float(metrics["edit/scale"]) <= 1.0


@pytest.mark.parametrize("backup", ["plain", "fresh", "decoupled"])
def test_targets_are_reward_alone_after_a_terminal_step(backup):
    agent = EXPO(flow(), value(), dataclasses.replace(SMALL, backup=backup))
    batch = bandit(32, Generator().manual_seed(0))
    metrics = agent.update_critic(batch, Generator().manual_seed(1))
    torch.testing.assert_close(metrics["critic/target"], batch.reward.mean())
    gap = float(metrics["critic/overestimate"])
    assert (gap == 0) is (backup == "plain")


def test_a_truncated_step_bootstraps_from_the_best_candidate():
    agent = EXPO(flow(), value(), dataclasses.replace(SMALL, edits=0, subset=4))
    batch = dataclasses.replace(
        bandit(32, Generator().manual_seed(0)), discount=torch.full((32,), 0.9)
    )
    with torch.no_grad():
        act = agent.base.policy.sample(batch.next_obs, 8, Generator().manual_seed(1))
        best = agent.critic.target(batch.next_obs, act).amin(0).amax(-1)
    metrics = agent.update_critic(batch, Generator().manual_seed(1))
    torch.testing.assert_close(
        metrics["critic/target"], (batch.reward + 0.9 * best).mean(), rtol=1e-5, atol=1e-6
    )


class BlackBox:
    """Proposes either arm; nobody can look inside."""

    spec = SPEC

    def __init__(self):
        self.asked = 0

    def reset(self):
        pass

    def commit(self, act):
        pass

    def keep(self, rows):
        pass

    def sample(self, obs, n, generator):
        rows = len(obs["state"])
        self.asked += rows
        arms = torch.randint(2, (rows, n, 1, 1), generator=generator)
        return ARMS * (2 * arms.float() - 1)


def test_a_black_box_is_selected_from_and_edited_and_asked_once_for_each_state():
    box = BlackBox()
    agent = EXPO(box, value(), SMALL, offline_rows=64, replay_slots=8)
    batch = bandit(64, Generator().manual_seed(0))
    noise = Generator().manual_seed(1)
    for _ in range(300):
        agent.update_critic(batch, noise)
        metrics = agent.update_policy(batch, noise)
    assert "base/loss" not in metrics
    assert box.asked == 64
    assert float((chosen(agent.evaluating()) > 0).float().mean()) > 0.95


CHEAPER = [
    {},
    {"candidates": "two-step"},
    {"candidates": "student"},
    {"candidates": "noise-filter"},
    {"cache_age": 5},
    {"candidate_dtype": "bfloat16"},
    {"entropy_backup": True, "backup": "decoupled"},
    {"adaptive_edit_scale": True},
]


@pytest.mark.parametrize("options", CHEAPER, ids=str)
def test_training_goes_on_bit_for_bit(options):
    settings = dataclasses.replace(SMALL, **options)

    def make(seed):
        return EXPO(flow(seed), value(seed), settings, offline_rows=1000, replay_slots=10)

    def steps(agent, count, draw, noise):
        for _ in range(count):
            batch = bandit(64, draw)
            agent.update_critic(batch, noise)
            agent.update_policy(batch, noise)

    whole, draw, noise = make(0), Generator().manual_seed(0), Generator().manual_seed(1)
    steps(whole, 3, draw, noise)
    state = copied(whole.state_dict())
    generators = [g.get_state() for g in (draw, noise)]
    steps(whole, 3, draw, noise)

    resumed = make(1)
    resumed.load_state_dict(state)
    for generator, held in zip((draw, noise), generators, strict=True):
        generator.set_state(held)
    steps(resumed, 3, draw, noise)
    assert torch.equal(chosen(resumed.acting()), chosen(whole.acting()))
    for one, two in zip(leaves(resumed.state_dict()), leaves(whole.state_dict()), strict=True):
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def copied(tree):
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(copied(value) for value in tree)
    return tree.clone() if isinstance(tree, torch.Tensor) else tree


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in leaves(tree[key])]
    if isinstance(tree, list | tuple):
        return [leaf for value in tree for leaf in leaves(value)]
    return [tree]


def test_what_a_run_leaves_behind_decides_as_the_agent_did(tmp_path):
    agent = EXPO(flow(), value(), SMALL)
    learn(agent, 3)
    agent.save(tmp_path)
    loaded = load_trained(tmp_path)
    assert isinstance(loaded, Policy) and loaded.spec == SPEC
    torch.testing.assert_close(chosen(loaded), chosen(agent.evaluating()))
    (tmp_path / "edit" / "edit.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot read the edit policy"):
        load_trained(tmp_path)
