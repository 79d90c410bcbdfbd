"""DSRL: a cloned policy of two ways is steered to the better one by the noise it decodes."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Generator
from toy_policies import CHUNK, DIM, SHAPES, SPEC, make, modes, states, train

from genpol.agents.config import TrainConfig
from genpol.agents.dsrl import DSRL, NoisePolicy
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.errors import InputError, SpecError
from offline.spec import ActionSpec
from offline.types import HasMode, Policy

CONFIG = TrainConfig(
    agent="dsrl", lr=3e-3, value_ensemble=3, subset=2, hidden=(64, 64), target_rate=0.05, utd=2.0,
    init_temperature=0.01, action_chunk=CHUNK,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clones():
    """Both ways, the better one with a share of about .3."""
    cloned = {kind: make(kind, denoising_steps=5) for kind in ("flow", "diffusion")}
    for policy in cloned.values():
        train(policy, 350)
        policy.eval()
    return cloned


def generator(seed=0):
    return Generator().manual_seed(seed)


def agent(base, *, config=CONFIG, seed=0, chunk=CHUNK, spec=SPEC) -> DSRL:
    torch.manual_seed(seed)
    value = ValueFunction(
        spec.with_chunk(chunk), SHAPES, hidden=config.hidden, ensemble=3, heads="stacked"
    )
    return DSRL(base, value, config)


def left(obs, act):
    """(B, n): it went left, which is rewarded."""
    return ((act - modes(obs)[1][:, None]).abs().amax((-1, -2)) < 0.25).float()


def experience(obs, act) -> Batch:
    reward = left(obs, act[:, None])[:, 0]
    nothing = torch.zeros(len(reward))
    return Batch(obs, act, reward, obs, nothing, reward, nothing)


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_the_better_of_two_ways_is_chosen(clones, kind):
    clone, draw = clones[kind], generator(3)
    test = states(200, seed=-1)
    before = left(test, clone.sample(test, 20, generator())).mean()
    assert 0.1 < before < 0.45  # the worse way was shown more often
    learner = agent(clone)
    for step in range(100):
        obs = states(128, seed=step)
        act = learner.acting().sample(obs, 1, draw)[:, 0]
        for _ in range(2):
            learner.update_critic(experience(obs, act), draw)
        learner.update_policy(experience(obs, act), draw)
    assert left(test, learner.evaluating().sample(test, 1, draw)).mean() > 0.9
    assert left(test, learner.acting().sample(test, 20, draw)).mean() > 0.9


def test_it_learns_from_data_that_names_no_noise(clones):
    """Offline: actions of the demonstrators alone; nothing is ever executed."""
    learner, draw, test = agent(clones["flow"]), generator(4), states(200, seed=-1)
    for step in range(100):
        obs = states(128, seed=step)
        side = torch.rand(128, 1, 1, generator=draw) < 0.5
        right, better = modes(obs)
        act = torch.where(side, right, better) + 0.1 * torch.randn(right.shape, generator=draw)
        learner.update_critic(experience(obs, act), draw)
        learner.update_policy(experience(obs, act), draw)
    assert left(test, learner.evaluating().sample(test, 1, draw)).mean() > 0.9


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_noise_is_the_actors_in_a_share_of_the_rows(clones, share):
    learner = agent(clones["flow"])
    learner.actor_share = share
    with torch.no_grad():
        learner.learner.actor.net[-1].bias[: CHUNK * DIM] = 50.0
    features = learner.critic.value.encoder(states(2000, seed=0))
    w = learner._distilled_at(features, generator())
    own = (w > 0.999).all(-1)[:, 0]
    assert w.shape == (2000, 1, CHUNK * DIM)
    assert own.float().mean().item() == pytest.approx(share, abs=0.04)
    if share < 1:  # the others are standard normal, in units of the bound
        assert (w[~own] * CONFIG.noise_bound).std().item() == pytest.approx(1, abs=0.05)


def test_the_noise_critic_comes_to_value_what_is_decoded(clones):
    learner, draw = agent(clones["flow"]), generator()
    learner.actor_share = 0.0
    obs, act = states(256, seed=0), torch.zeros(256, CHUNK, DIM)
    errors = []
    for step in range(200):
        batch = experience(states(256, seed=step), act)
        errors.append(learner.update_policy(batch, draw)["critic/distill_loss"].item())
    assert sum(errors[-20:]) < 0.2 * sum(errors[:20])
    w = torch.randn(256, 4, CHUNK * DIM, generator=draw)
    value, noise_critic = learner.critic.value, learner.noise_critic
    with torch.no_grad():
        q = value(obs, learner.acting().decode(obs, w))
        projected = noise_critic.heads.project(value.encoder(obs))
        q_w = noise_critic.score(projected, w / CONFIG.noise_bound)
    assert q.shape == q_w.shape == (3, 256, 4)
    explained = 1 - (q - q_w).square().mean() / (q - q.mean((1, 2), keepdim=True)).square().mean()
    assert explained > 0.7


class Recorder:
    """Decodes noise as it is, and remembers it."""

    has_decode, spec = True, ActionSpec.from_bounds([-1.0] * 3, [1.0] * 3, chunk=4)

    def __init__(self):
        self.noise = torch.zeros(0)

    def decode(self, obs, noise):
        self.noise = noise
        return noise.unflatten(-1, (4, 3))


def test_noise_stays_in_its_bounds_and_chunks_are_cut_to_the_critics():
    base = Recorder()
    config = dataclasses.replace(CONFIG, noise_bound=0.7)
    learner = agent(base, config=config, chunk=2, spec=base.spec)
    with torch.no_grad():
        learner.learner.actor.net[-1].bias[: 4 * 3] = 50.0
    obs = states(5, seed=0)
    act = learner.acting().sample(obs, 6, generator())
    assert act.shape == (5, 6, 2, 3) and base.noise.shape == (5, 6, 12)
    torch.testing.assert_close(base.noise, torch.full((5, 6, 12), 0.7))
    torch.testing.assert_close(learner.evaluating().mode(obs), torch.full((5, 2, 3), 0.7))


def test_actions_cross_through_the_environments_units():
    """1.2 is clipped to the base's bound 1, which is 1 / 1.5 of the critic's."""
    base = Recorder()
    wide = ActionSpec.from_bounds([-1.5] * 3, [1.5] * 3, chunk=4)
    learner = agent(base, chunk=4, spec=wide)
    found = learner.acting().decode(states(2, seed=0), torch.full((2, 1, 12), 1.2))
    torch.testing.assert_close(found, torch.full((2, 1, 4, 3), 1 / 1.5))


def test_the_base_learns_in_pretraining_only():
    base, draw = make("flow", denoising_steps=2), generator()
    learner = agent(base)
    obs = states(32, seed=0)
    batch = experience(obs, modes(obs)[0])
    initial = copy.deepcopy(learner.base.state_dict()["average"])
    assert "base/loss" in learner.pretrain(batch, draw)
    cloned = copy.deepcopy(learner.base.state_dict()["average"])
    assert any(not torch.equal(cloned[name], initial[name]) for name in initial)
    learner.update_critic(batch, draw)
    learner.update_policy(batch, draw)
    frozen = learner.base.state_dict()["average"]
    assert all(torch.equal(frozen[name], cloned[name]) for name in cloned)
    assert all(p.grad is None for p in learner.base.average.parameters())


def test_a_resumed_agent_goes_on_bit_for_bit():
    def advance(learner, seeds, draw):
        for seed in seeds:
            obs = states(16, seed=seed)
            batch = experience(obs, learner.acting().sample(obs, 1, draw)[:, 0])
            batch = dataclasses.replace(batch, discount=torch.full((16,), 0.9))
            learner.update_critic(batch, draw)
            learner.update_policy(batch, draw)

    base, draw = make("flow", denoising_steps=2), generator()
    learner = agent(base)
    advance(learner, range(3), draw)
    state, stream = copy.deepcopy(learner.state_dict()), draw.get_state()
    advance(learner, range(3, 6), draw)
    resumed, draw = agent(make("flow", seed=8, denoising_steps=2), seed=8), generator(8)
    resumed.load_state_dict(state)
    draw.set_state(stream)
    advance(resumed, range(3, 6), draw)
    obs = states(9, seed=-3)
    assert torch.equal(resumed.evaluating().mode(obs), learner.evaluating().mode(obs))
    act = torch.zeros(9, 1, CHUNK, DIM)
    assert torch.equal(resumed.critic.target(obs, act), learner.critic.target(obs, act))
    for one, other in zip(
        resumed.noise_critic.heads.parameters(),
        learner.noise_critic.heads.parameters(),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_policies_are_plain_and_the_same_objects(clones):
    learner, obs = agent(clones["flow"]), states(4, seed=0)
    policy = learner.acting()
    assert isinstance(policy, Policy) and isinstance(policy, HasMode)
    assert learner.acting() is policy and learner.evaluating() is learner.evaluating()
    act = policy.sample(obs, 3, generator())
    assert not act.requires_grad and not act.is_inference() and act.std(1).max() > 0
    greedy = learner.evaluating().sample(obs, 3, None)
    assert torch.equal(greedy, policy.mode(obs)[:, None].expand(-1, 3, -1, -1))


def test_what_is_saved_can_be_loaded(clones, tmp_path):
    learner, obs = agent(clones["flow"]), states(4, seed=0)
    learner.save(tmp_path)
    loaded = NoisePolicy.load(tmp_path / "policy")
    torch.testing.assert_close(loaded.mode(obs), learner.evaluating().mode(obs))
    assert loaded.spec == learner.spec
    assert ValueFunction.load(tmp_path / "value").ensemble == 3


class BlackBox:
    spec = SPEC


def test_a_base_without_noise_is_refused_in_one_line():
    with pytest.raises(InputError, match="BlackBox takes none: pass a flow or diffusion") as found:
        agent(BlackBox())
    assert "\n" not in str(found.value)


def test_a_base_of_other_actions_is_refused():
    with pytest.raises(SpecError, match="A=3"):
        agent(Recorder(), chunk=CHUNK)
