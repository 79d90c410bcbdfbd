"""SAC and RLPD: targets, gradients and the temperature by hand, and small tasks learnt."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Generator

from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.errors import InputError, SpecError
from offline.learning.actor_policy import ActorPolicy
from offline.learning.agent import Agent
from offline.learning.config import RLConfig
from offline.learning.sac import PLAIN_SAC, RLPD, SAC, ActorLearner
from offline.learning.temperature import Temperature
from offline.networks.encoder import ObsEncoder
from offline.networks.heads import TanhGaussian
from offline.spec import ActionSpec
from offline.types import HasMode, Policy

CONFIG = RLConfig(lr=3e-3, value_ensemble=4, subset=2, hidden=(32, 32), target_rate=0.05)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generator(seed=0):
    return Generator().manual_seed(seed)


def make(*, config=CONFIG, chunk=1, dim=1, obs=1, seed=0, image=False, **rest) -> SAC:
    torch.manual_seed(seed)
    spec = ActionSpec.from_bounds([-2.0] * dim, [2.0] * dim, chunk=chunk)
    shapes = {"state": (obs,)} | ({"camera": (16, 16, 3)} if image else {})
    value = ValueFunction(
        spec, shapes, hidden=config.hidden, ensemble=config.value_ensemble, heads="stacked"
    )
    return SAC(value, config, **(RLPD | rest))


def transitions(size=8, *, chunk=1, dim=1, obs=1, seed=0, image=False) -> Batch:
    draw = generator(seed)
    picture = {"camera": torch.zeros(size, 16, 16, 3, dtype=torch.uint8)} if image else {}
    return Batch(
        obs={"state": torch.randn(size, obs, generator=draw)} | picture,
        act=torch.rand(size, chunk, dim, generator=draw) * 2 - 1,
        reward=torch.randn(size, generator=draw),
        next_obs={"state": torch.randn(size, obs, generator=draw)} | picture,
        discount=torch.full((size,), 0.9),
        mc_return=torch.zeros(size),
        success=torch.zeros(size),
    )


# -- parts by hand


def test_the_temperature_by_hand():
    """d/dlog(alpha) of alpha (entropy - target) = .1 * (-3 + 2) < 0: alpha rises by Adam's lr."""
    temperature = Temperature(0.1, target_entropy=-2.0, lr=0.01)
    temperature.update(torch.tensor(-3.0))
    assert temperature.log.grad.item() == pytest.approx(0.1 * -1.0)
    assert temperature.value.item() == pytest.approx(0.1 * math.exp(0.01), rel=1e-5)
    for _ in range(300):
        temperature.update(torch.tensor(-1.0))
    assert temperature.value < 0.05


def quadratic(centre):
    """Two heads -(a - c)^2 and 3 of it less 1, so that mean and minimum differ."""

    def score(act):
        q = -((act - centre) ** 2).sum(-1)
        return torch.stack([q, 3 * q - 1])

    return score


@pytest.mark.parametrize("pool", ["mean", "min"])
def test_the_actors_gradient_on_a_quadratic_value(pool):
    """By the chain rule through a = tanh(mean + std noise), for bias terms of the last layer.

    log pi = log N(noise) - log std - log(1 - a^2), so d log pi / du = 2 a; with Q' = -2 (a - c)
    times the heads' mean factor 2 or, the lower head being 3 q - 1, the minimum's 3:
        dL/dmean = alpha 2 a - Q'(a) (1 - a^2),   dL/dlog std = std noise dL/dmean - alpha.
    """
    torch.manual_seed(0)
    actor, alpha, centre = TanhGaussian(2, 1, (8,)), 0.3, 0.4
    features = torch.randn(16, 2)
    learner = ActorLearner(actor, Temperature(alpha, -1.0, 1e-3), lr=1e-3, pool=pool)
    with torch.no_grad():
        mean, log_std = actor(features)
        noise = torch.randn(16, 1, 1, generator=generator(5))[:, 0]
        a = torch.tanh(mean + log_std.exp() * noise)
    factor = {"mean": 2, "min": 3}[pool]
    by_mean = alpha * 2 * a + factor * 2 * (a - centre) * (1 - a**2)
    by_log_std = log_std.exp() * noise * by_mean - alpha
    learner.update(features, quadratic(centre), generator(5))
    bias = actor.net[-1].bias.grad
    torch.testing.assert_close(bias, torch.cat([by_mean.mean(0), by_log_std.mean(0)]))


def test_the_actors_gradient_against_finite_differences():
    """The loss changes by |g|^2 for each unit along the gradient g."""
    torch.manual_seed(0)
    actor, features = TanhGaussian(2, 2, (8,)), torch.randn(32, 2)

    def updated(step=0.0, gradient=()):
        learner = ActorLearner(
            copy.deepcopy(actor), Temperature(0.3, -1.0, 1e-3), lr=1e-3, pool="mean"
        )
        with torch.no_grad():
            for weight, slope in zip(learner.params, gradient, strict=False):
                weight.add_(slope, alpha=step)
        loss = learner.update(features, quadratic(0.4), generator())["actor/loss"].item()
        return loss, [weight.grad for weight in learner.params]

    _, gradient = updated()
    norm = sum(g.square().sum().item() for g in gradient)
    (above, _), (below, _) = updated(1e-2, gradient), updated(-1e-2, gradient)
    assert (above - below) / 2e-2 == pytest.approx(norm, rel=0.02)


class Constant(torch.nn.Module):
    """Heads with values of their own, whatever the state and action."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.tensor(values)

    def project(self, features, which=None):
        return features

    def forward(self, projected, act, which=None):
        values = self.values if which is None else self.values[which]
        return values[:, None, None].expand(-1, *act.shape[:2])


@pytest.mark.parametrize("entropy_backup", [False, True])
def test_the_bootstrap_by_hand(entropy_backup):
    """The least of two of the heads 1, 2, 3, 4, less alpha log pi where asked for."""
    agent = make(entropy_backup=entropy_backup, init_temperature=0.5)
    agent.critic.target.heads = Constant([1.0, 2.0, 3.0, 4.0])
    object.__setattr__(agent.critic.target, "_stacked", lambda: agent.critic.target.heads)
    batch, seen = transitions(), set()
    for seed in range(20):
        found = agent.next_value(batch, generator(seed))
        with torch.no_grad():
            _, log_prob = agent.learner.actor.sample(batch.next_obs["state"], 1, generator(seed))
        least = found + 0.5 * log_prob[:, 0] if entropy_backup else found
        torch.testing.assert_close(least, least[:1].expand(8), atol=1e-5, rtol=0)
        seen.add(round(least[0].item()))
    assert seen == {1, 2, 3}  # 4 is never the lower of two


def test_the_target_entropy_is_minus_half_the_flat_dimension():
    assert make(chunk=3, dim=2).learner.temperature.target_entropy == -3.0
    assert make(target_entropy=1.5).learner.temperature.target_entropy == 1.5


def test_the_actor_and_the_critic_leave_each_other_alone():
    agent, batch = make(image=True), transitions(image=True)
    before = copy.deepcopy(agent.state_dict())
    agent.update_policy(batch, generator())
    after = agent.state_dict()
    for name, tensor in after["critic"]["value"].items():
        assert torch.equal(tensor, before["critic"]["value"][name])
    assert all(p.grad is None for p in agent.critic.value.parameters())
    agent.update_critic(batch, generator())
    for name, tensor in agent.learner.actor.state_dict().items():
        assert torch.equal(tensor, after["actor"]["actor"][name])
    assert not torch.equal(
        agent.critic.value.encoder.images[0].stem.weight, before["critic"]["value"][
            "encoder.images.0.stem.weight"
        ]
    )  # fmt: skip


# -- tasks


def bandit(size, draw, best=0.3):
    """One step with the reward -(a - .3)^2, whatever the state."""
    act = torch.rand(size, 1, 1, generator=draw) * 2 - 1
    state = {"state": torch.randn(size, 1, generator=draw)}
    nothing = torch.zeros(size)
    reward = -((act - best) ** 2).flatten(1).sum(1)
    return Batch(state, act, reward, state, nothing, reward, nothing)


@pytest.mark.parametrize("variant", [RLPD, PLAIN_SAC])
def test_a_bandits_best_action_is_found(variant):
    agent, draw = make(init_temperature=0.05, **variant), generator()
    for _ in range(250):
        batch = bandit(128, draw)
        agent.update_critic(batch, draw)
        metrics = agent.update_policy(batch, draw)
    obs = {"state": torch.linspace(-1, 1, 9)[:, None]}
    assert (agent.evaluating().mode(obs) - 0.3).abs().max() < 0.1
    entropy = metrics["actor/entropy"].item()
    assert entropy < 0.2  # it has narrowed from the uniform's log 2 towards -1/2


def line(size, draw):
    """x' = x + .5 a1 + .5 a2 in two steps of a chunk; -|x'| at the end of two chunks.

    From x the end 0 takes a1 + a2 = -2 x in all, in the first chunk or the second.
    """
    x = torch.rand(size, 1, generator=draw) * 2 - 1
    last = torch.rand(size, generator=draw) < 0.5
    act = torch.rand(size, 2, 1, generator=draw) * 2 - 1
    moved = x + 0.25 * act.sum(1)
    phase = last[:, None].float()
    reward = torch.where(last, -moved[:, 0].abs(), 0.0)
    return Batch(
        obs={"state": torch.cat([x, phase], 1)},
        act=act,
        reward=reward,
        next_obs={"state": torch.cat([moved, torch.ones(size, 1)], 1)},
        discount=torch.where(last, 0.0, 0.9),
        mc_return=reward,
        success=torch.zeros(size),
    )


def test_a_chunked_task_of_two_decisions_is_learnt():
    """From |x| = .9 one chunk alone moves .5: the first decision has to be valued by the second."""
    agent, draw = make(chunk=2, obs=2, init_temperature=0.01), generator()
    for _ in range(400):
        batch = line(128, draw)
        agent.update_critic(batch, draw)
        agent.update_policy(batch, draw)
    x, policy = torch.linspace(-0.9, 0.9, 19)[:, None], agent.evaluating()
    for phase in (0.0, 1.0):
        act = policy.mode({"state": torch.cat([x, torch.full_like(x, phase)], 1)})
        assert act.shape == (19, 2, 1)
        x = x + 0.25 * act.sum(1)
    assert x.abs().max() < 0.2


@pytest.mark.slow
def test_a_pendulum_is_balanced():
    """From scratch, all of its 1000 steps after 4000 of experience."""
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    config = RLConfig(lr=1e-3, value_ensemble=2, hidden=(64, 64), target_rate=0.01)
    agent, draw = make(config=config, obs=4, **PLAIN_SAC), generator()
    for value in (agent.critic.value, agent.critic.target):
        value.encoder.normalizer.std.copy_(torch.tensor([0.3, 0.1, 1.0, 1.0]))
    steps, env = 4000, gymnasium.make("InvertedPendulum-v5")
    before, after, acts = torch.zeros(steps, 4), torch.zeros(steps, 4), torch.zeros(steps, 1, 1)
    discount, one = torch.full((steps,), 0.98), torch.ones(128)
    obs, _ = env.reset(seed=0)
    for step in range(steps):
        before[step] = torch.from_numpy(obs)
        acts[step] = torch.rand(1, 1, generator=draw) * 2 - 1
        if step >= 300:
            acts[step] = agent.acting().sample({"state": before[step : step + 1]}, 1, draw)[0, 0]
        obs, _, terminated, truncated, _ = env.step(3 * acts[step, 0].numpy())
        after[step], discount[step] = torch.from_numpy(obs), 0.0 if terminated else 0.98
        if terminated or truncated:
            obs, _ = env.reset()
        if step >= 300:
            rows = torch.randint(step + 1, (128,), generator=draw)
            states = {"state": before[rows]}, {"state": after[rows]}
            batch = Batch(states[0], acts[rows], one, states[1], discount[rows], one, one)
            agent.update_critic(batch, draw)
            agent.update_policy(batch, draw)
    for seed in range(3):
        (obs, _), length, ended = env.reset(seed=seed), 0, False
        while not ended:
            state = {"state": torch.from_numpy(obs).float()[None]}
            act = 3 * agent.evaluating().mode(state)[0, 0].numpy()
            obs, _, terminated, truncated, _ = env.step(act)
            length, ended = length + 1, terminated or truncated
        assert length == 1000


def test_cloning_finds_the_datas_actions():
    agent, draw = make(), generator()
    batch = transitions(64)
    batch = dataclasses.replace(batch, act=0.5 * torch.sin(batch.obs["state"])[:, None])
    for _ in range(300):
        metrics = agent.pretrain(batch, draw)
    assert (agent.evaluating().mode(batch.obs) - batch.act).abs().mean() < 0.05
    assert metrics["actor/clone_loss"] < 0


def test_a_cloning_weight_keeps_the_actor_by_the_data():
    ends = []
    for weight in (0.0, 10.0):
        agent, draw = make(init_temperature=0.05, clone_weight=weight), generator()
        for _ in range(200):
            batch = bandit(128, draw)
            agent.update_critic(batch, draw)
            data = dataclasses.replace(batch, act=torch.full_like(batch.act, -0.6))
            agent.update_policy(data, draw)
        ends.append(agent.evaluating().mode({"state": torch.zeros(1, 1)}).item())
    assert ends[0] > 0.1 and ends[1] == pytest.approx(-0.6, abs=0.1)


# -- the agent and its policy


def test_a_resumed_agent_goes_on_bit_for_bit():
    def advance(agent, steps, draw):
        for seed in steps:
            batch = transitions(chunk=2, seed=seed)
            agent.update_critic(batch, draw)
            agent.update_policy(batch, draw)

    draw = generator(1)
    agent = make(chunk=2)
    advance(agent, range(5), draw)
    state, stream = copy.deepcopy(agent.state_dict()), draw.get_state()
    advance(agent, range(5, 10), draw)
    resumed = make(chunk=2, seed=9)
    resumed.load_state_dict(state)
    draw = generator()
    draw.set_state(stream)
    advance(resumed, range(5, 10), draw)
    for (name, one), (_, other) in zip(
        leaves(agent.state_dict()), leaves(resumed.state_dict()), strict=True
    ):
        assert torch.equal(one, other), name


def leaves(tree, path=""):
    if isinstance(tree, dict):
        tree = list(tree.items())
    elif isinstance(tree, (list, tuple)):
        tree = list(enumerate(tree))
    else:
        return [(path, torch.as_tensor(float("nan") if tree is None else tree).nan_to_num())]
    return [leaf for name, node in tree for leaf in leaves(node, f"{path}/{name}")]


def test_it_is_an_agent_whose_policies_stay_the_same_objects():
    agent: Agent = make(chunk=2, dim=3)
    acting, evaluating = agent.acting(), agent.evaluating()
    assert isinstance(acting, Policy) and isinstance(acting, HasMode)
    assert agent.acting() is acting and agent.evaluating() is evaluating
    obs = transitions().obs
    act = acting.sample(obs, 5, generator())
    assert act.shape == (8, 5, 2, 3) and not act.requires_grad and not act.is_inference()
    assert act.std(1).min() > 0.01 and act.abs().max() < 1
    mode = evaluating.sample(obs, 5, generator())
    assert torch.equal(mode, acting.mode(obs)[:, None].expand(-1, 5, -1, -1))
    agent.update_policy(transitions(chunk=2, dim=3), generator())
    assert not torch.equal(evaluating.sample(obs, 5, None), mode)  # they follow the weights


def test_what_is_saved_can_be_loaded(tmp_path):
    agent = make(chunk=2, image=True)
    agent.critic.value.encoder.normalizer.mean.fill_(0.5)
    agent.save(tmp_path)
    obs = transitions(image=True).obs
    policy = ActorPolicy.load(tmp_path / "policy")
    torch.testing.assert_close(policy.mode(obs), agent.evaluating().mode(obs))
    assert policy.spec == agent.spec and not any(p.requires_grad for p in policy.parameters())
    value, act = ValueFunction.load(tmp_path / "value"), torch.zeros(8, 1, 2, 1)
    torch.testing.assert_close(value(obs, act), agent.critic.target(obs, act))


def test_the_format_is_that_of_the_other_policies():
    policies = pytest.importorskip("genpol.policies.policy")
    from offline.learning import actor_policy

    for name in ("WEIGHTS", "CONFIG", "FORMAT"):
        assert getattr(actor_policy, name) == getattr(policies, name)


def test_bad_folders_and_observations_are_one_line(tmp_path):
    agent = make()
    policy = agent.acting()
    policy.save(tmp_path, kind="another")
    for folder, message in ((tmp_path, "another"), (tmp_path / "none", "is missing")):
        with pytest.raises(InputError, match=message) as found:
            ActorPolicy.load(folder)
        assert "\n" not in str(found.value)
    policy.save(tmp_path)
    ActorPolicy(policy.spec, ObsEncoder({"state": (1,)}), TanhGaussian(1, 1, (4,)), (4,)).save(
        tmp_path / "other"
    )
    (tmp_path / "other" / "policy.safetensors").replace(tmp_path / "policy.safetensors")
    with pytest.raises(InputError, match="does not fit policy.json") as found:
        ActorPolicy.load(tmp_path)
    assert "\n" not in str(found.value)
    with pytest.raises(InputError, match="n=0"):
        policy.sample(transitions().obs, 0, None)
    with pytest.raises(SpecError, match="the policy"):
        policy.mode({"wrong": torch.zeros(2, 1)})
