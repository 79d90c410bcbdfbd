"""Fine-tuning of policies by reward: PRDP at beta is steering at that temperature."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Generator
from toy_policies import CHUNK, DIM, SHAPES, SPEC, make, modes, states, train

from diffusion.chain import sample_chain
from diffusion.objective import Rollouts, step_weights
from diffusion.prdp import PRDP
from diffusion.process import ReverseProcess
from diffusion.scores import ChainScores
from diffusion.two_pass import two_pass_backward
from genpol.agents.config import TrainConfig, usual
from genpol.agents.from_value import FromValue
from genpol.agents.reward_tuning import RewardTuning, capped, streams
from genpol.agents.tuning_checks import check_tuning
from genpol.agents.tuning_config import TUNERS
from genpol.policies.policy import load_policy
from genpol.steering.select import softmax
from genpol.steering.steered import Steered
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.errors import InputError, SpecError

BETA = 0.5
SLOW = [pytest.mark.slow]
RARE = ("ddpo", "rtb", "awm")


def generator(seed=0):
    return Generator().manual_seed(seed)


def config(agent="prdp", **settings):
    return TrainConfig(**{"agent": agent, **usual(agent), "batch_size": 4} | settings)


# -- identities


def gaussian_kl(mean, std, other_mean, other_std):
    """KL(N(mean, std^2) || N(other_mean, other_std^2)) in nats."""
    ratio = std / other_std
    return ((mean - other_mean) / other_std) ** 2 / 2 + (ratio**2 - 1) / 2 - math.log(ratio)


def table(stds):
    """Steps whose mean is the network's output, noisiest first."""
    count = len(stds)
    ones = torch.ones(count, dtype=torch.float64)
    return ReverseProcess(
        torch.arange(count), ones / 2, ones / 2, ones, 0 * ones, 0 * ones,
        torch.tensor(stds, dtype=torch.float64), "sample", None,
    )  # fmt: skip


@pytest.mark.parametrize("stds", [[0.5], [0.6, 0.3]], ids=["one step", "two steps"])
def test_on_a_gaussian_prdp_at_beta_is_steering_at_that_temperature(stds):
    """Q(a) = q a moves a Gaussian by its variance times q / beta, and leaves its width."""
    slope, q, start, process = 0.8, 1.5, -0.2, table(stds)
    first = torch.tensor([1.0] + [0.0] * (len(stds) - 1))  # the noise itself has no say
    shift = torch.zeros(len(stds), requires_grad=True)

    def network(moves):
        def predict(x_t, t, cond):
            return (
                start * first[t][:, None]
                + slope * (1 - first[t])[:, None] * x_t
                + moves[t][:, None]
            )

        return predict

    policy, reference = network(shift), network(torch.zeros(len(stds)))
    optimiser, random = torch.optim.Adam([shift], lr=0.1), generator()
    group = torch.zeros(16, dtype=torch.long)
    for _ in range(100):
        chain = sample_chain(policy, process, {}, (1,), streams(16, random), reference=reference)
        scores = ChainScores(policy, reference, process, chain, {}, group)
        rollouts = Rollouts(
            chain.log_prob, chain.log_prob_ref, q * chain.sample[:, 0], group,
            step_weights(process, "uniform"), chain.dimensions,
        )  # fmt: skip
        optimiser.zero_grad()
        two_pass_backward(scores.score, PRDP(BETA, None, "nats"), rollouts, 64)
        optimiser.step()

    def marginal(moves):
        """Mean and standard deviation of the last x, in closed form."""
        mean, variance = 0.0, 0.0
        for i, std in enumerate(stds):
            mean = (start if i == 0 else slope * mean) + float(moves[i].detach())
            variance = std**2 + (0 if i == 0 else slope**2 * variance)
        return mean, variance**0.5

    mean, std = marginal(torch.zeros(len(stds)))
    best = mean + std**2 * q / BETA
    assert gaussian_kl(*marginal(shift), best, std) < 1e-3
    assert gaussian_kl(mean, std, best, std) > 0.1  # which is not where it began

    draws = mean + std * torch.randn(3000, 1024, generator=random)
    steered = draws.gather(1, softmax(BETA)(q * draws, random)[:, None])
    assert gaussian_kl(float(steered.mean()), float(steered.std()), *marginal(shift)) < 2e-3


def test_on_a_categorical_prdp_at_beta_is_steering_at_that_temperature():
    """Every action of a finite set is a chain of one step; steering sees a million of them."""
    random = generator()
    base = torch.randn(6, generator=random).log_softmax(0)
    value = torch.tensor([0.3, -0.2, 0.6, 0.0, -1.0, 0.9])
    logits = base.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([logits], lr=0.05)
    weight, group = torch.ones(1), torch.zeros(6, dtype=torch.long)
    for _ in range(150):
        log_prob = logits.log_softmax(0)[:, None]
        rollouts = Rollouts(log_prob.detach(), base[:, None], value, group, weight, 1)
        loss, _ = PRDP(BETA, None, "nats")(log_prob, rollouts)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    learnt = logits.detach().log_softmax(0)
    tilted = (base + value / BETA).log_softmax(0)
    kl = torch.nn.functional.kl_div
    assert kl(learnt, tilted, log_target=True, reduction="sum") < 1e-4
    assert kl(base, tilted, log_target=True, reduction="sum") > 0.1
    candidates = base.exp().multinomial(2000 * 512, replacement=True, generator=random)
    scores = value[candidates].view(2000, 512)
    chosen = candidates.view(2000, 512).gather(1, softmax(BETA)(scores, random)[:, None])
    drawn = chosen.flatten().bincount(minlength=6).double() / 2000
    assert float((drawn * (drawn / learnt.exp()).log().nan_to_num()).sum()) < 3e-3


class Towards:
    """A critic that likes the rarer way: 1 at it, less around it."""

    spec = SPEC

    def encode(self, obs):
        return modes(obs)[1]

    def score(self, features, act):
        far = (act - features[:, None]).square().mean((-1, -2))
        return (1 + (-2 * far).exp())[None]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_a_learnt_policy_comes_to_the_value_of_steering(kind):
    """One sample of the distilled policy is worth what steering with 256 candidates is, within
    5 %, and so is what it gains over one sample, within 15 %."""
    base, critic, random, beta = make(kind), Towards(), generator(), 0.2
    train(base, 800)
    base.eval()
    settings = {"beta": beta, "kl_cap": 1e3, "base_lr": 3e-4, "group_size": 16}
    tuning = RewardTuning(base, config(**settings))
    for step in range(300):
        obs = states(16, seed=10_000 + step)
        tuning.learn(obs, lambda s, act: critic.score(critic.encode(s), act)[0], random)
    held = states(200, seed=-7)

    def worth(act):
        return float(critic.score(critic.encode(held), act).mean())

    one = worth(base.sample(held, 16, generator(1)))
    steered = worth(Steered(base, critic, 256, softmax(beta)).sample(held, 8, generator(1)))
    distilled = worth(tuning.base.average.sample(held, 16, generator(1)))
    print(kind, one, steered, distilled)
    assert steered - one > 0.1
    assert distilled == pytest.approx(steered, rel=0.05)
    assert distilled - one == pytest.approx(steered - one, rel=0.15)


# -- the agent


def agent_of(objective="prdp", kind="flow", **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        value = ValueFunction(SPEC, SHAPES, hidden=(16, 16), ensemble=2, heads="stacked")
    return FromValue(make(kind), value, config(objective, **settings))


def batch(seed=0, count=4):
    zero = torch.zeros(count)
    obs = states(count, seed=seed)
    act = torch.zeros(count, CHUNK, DIM)
    return Batch(obs, act, zero, obs, zero, zero, zero, torch.arange(count))


@pytest.mark.parametrize(
    ("objective", "kind"),
    [
        *(pytest.param(name, "flow", marks=SLOW * (name in RARE)) for name in TUNERS),
        ("prdp", "diffusion"),
        pytest.param("prdp-forward", "diffusion", marks=SLOW),
    ],
)
def test_every_objective_trains_every_policy(objective, kind):
    """The weights move, the average follows, and the reference and the critic stay."""
    agent, random = agent_of(objective, kind, inner_steps=2), generator()
    before = {n: w.clone() for n, w in agent.base.policy.named_parameters()}
    frozen = [*agent.value.parameters(), *agent.tuning.reference.policy.parameters()]
    kept = [weight.clone() for weight in frozen]
    assert agent.update_critic(batch(), random) == {}
    for seed in range(2):
        metrics = agent.update_policy(batch(seed), random)
    assert all(torch.isfinite(number) for number in metrics.values())
    assert {"reward/mean", "reward/spread", "kl/forward", "policy/gradient_norm"} <= set(metrics)
    assert metrics["kl/forward"] > 0
    moved = [n for n, w in agent.base.policy.named_parameters() if not torch.equal(w, before[n])]
    assert moved and not any(name.startswith("encoder") for name in moved)
    average = dict(agent.evaluating().named_parameters())
    assert not torch.equal(average[moved[0]], before[moved[0]])
    assert all(torch.equal(a, b) for a, b in zip(kept, frozen, strict=True))


def test_before_any_update_ratios_are_one_and_the_reference_agrees():
    agent = agent_of()
    tuning, cond = agent.tuning, agent.tuning.chains.condition(states(3, seed=1))
    group = torch.arange(3).repeat_interleave(2)
    chain = tuning.draw(cond, group, generator())
    assert torch.equal(chain.log_prob, chain.log_prob_ref) and not chain.kl.any()
    metrics = agent.update_policy(batch(), generator())
    assert metrics["check/ratio_error"] < 1e-5


def test_a_reference_that_differs_at_the_start_is_found():
    agent, random = agent_of(), generator()
    tuning, obs = agent.tuning, states(2, seed=0)
    cond, group = tuning.chains.condition(obs), torch.tensor([0, 0, 1, 1])
    chain = tuning.draw(cond, group, random)
    chain.log_prob_ref = chain.log_prob_ref + 1
    scores, rollouts = tuning.scored(chain, cond, group, torch.randn(4), random)
    with pytest.raises(InputError, match="differ by .* before any update"):
        tuning.improve(scores, rollouts)


def test_ratios_that_are_off_by_more_than_the_clip_are_found():
    agent, random = agent_of(), generator()
    tuning, obs = agent.tuning, states(2, seed=0)
    cond, group = tuning.chains.condition(obs), torch.tensor([0, 0, 1, 1])
    chain = tuning.draw(cond, group, random)
    scores, rollouts = tuning.scored(chain, cond, group, torch.randn(4), random)
    off = dataclasses.replace(rollouts, log_prob_old=rollouts.log_prob_old + 0.2)
    with pytest.raises(InputError, match="more than the clip"):
        tuning.improve(scores, off)


def test_the_reward_is_of_what_is_executed():
    """Chunks beyond the bounds are worth what the clipped ones are; the least head counts."""
    agent, obs = agent_of(), states(2, seed=0)
    act = 3 * torch.randn(2, 5, CHUNK, DIM, generator=generator())
    heads = agent.value(obs, act.clamp(-1, 1))
    assert torch.equal(agent.values(obs, act), heads.amin(0))
    assert not torch.allclose(agent.value(obs, act).amin(0), heads.amin(0))


def test_units_are_converted_where_the_critic_normalises_otherwise():
    half = {"p01": (-1.0, -0.5), "p99": (1.0, 0.5), "scale": "p01_p99"}
    value = ValueFunction(
        dataclasses.replace(SPEC, **half), SHAPES, hidden=(8, 8), ensemble=2, heads="stacked"
    )
    agent = FromValue(make("flow"), value, config())
    obs, act = states(2, seed=0), torch.rand(2, 3, CHUNK, DIM)
    assert torch.allclose(agent.values(obs, act), value(obs, 2 * act).amin(0), atol=1e-6)


def test_a_critic_of_other_chunks_is_refused():
    value = ValueFunction(SPEC.with_chunk(3), SHAPES, hidden=(8, 8), heads="stacked")
    with pytest.raises(SpecError, match="H=2, the critic's H=3"):
        FromValue(make("flow"), value, config())


@pytest.mark.parametrize(
    "objective", [pytest.param(name, marks=SLOW * (name != "nft")) for name in TUNERS]
)
def test_it_goes_on_from_its_state_bit_for_bit(objective):
    agent, random = agent_of(objective), generator()
    agent.update_policy(batch(), random)
    state, stream = agent.state_dict(), random.get_state()
    state = torch.utils._pytree.tree_map(lambda x: x.clone() if torch.is_tensor(x) else x, state)
    again = agent_of(objective)
    again.load_state_dict(state)
    expected = agent.update_policy(batch(1), random)
    found = again.update_policy(batch(1), Generator().manual_seed(0).set_state(stream))
    assert {n: float(v) for n, v in found.items()} == {n: float(v) for n, v in expected.items()}
    for one, two in zip(agent.networks(), again.networks(), strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)
        )


def test_tuning_begins_from_what_was_cloned():
    """Without a policy to start from the agent's base clones first; that is the reference then."""
    agent, random = agent_of(), generator()
    for _ in range(3):
        agent.base.update(batch(), random)
    cloned = {n: w.clone() for n, w in agent.base.average.named_parameters()}
    agent.update_policy(batch(), random)
    for name, weight in agent.tuning.reference.policy.named_parameters():
        assert torch.equal(weight, cloned[name])


def test_no_observation_asks_for_more_than_the_cap():
    """The best of K normal draws is about as far as a cap of log K - (K - 1) / K nats."""
    reward = torch.tensor([[0.0, 0.1, 0.2], [0.0, 10.0, 20.0]])
    found, share = capped(reward, beta=0.5, kl_cap=2.0)
    assert torch.equal(found[0], reward[0]) and share == 0.5
    assert float(found[1].std()) == pytest.approx(0.5 * 2.0)  # (std / beta)^2 / 2 = 2 nats
    assert torch.equal(capped(reward, 0.5, 1e6)[0], reward)
    assert torch.equal(capped(torch.ones(2, 3), 0.5, 1.0)[0], torch.ones(2, 3))


def test_a_reward_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"expected one number for each chunk, \(4, 8\)"):
        RewardTuning(make("flow"), config()).learn(
            states(4, seed=0), lambda obs, act: act.sum(-1), generator()
        )


def test_it_saves_a_policy_folder(tmp_path):
    agent, obs = agent_of(), states(2, seed=0)
    agent.update_policy(batch(), generator())
    agent.save(tmp_path)
    found = load_policy(tmp_path)
    act = found.sample(obs, 3, generator())
    assert torch.equal(act, agent.evaluating().sample(obs, 3, generator()))
    assert found.meta["tuned"]["objective"] == "prdp"
    assert ValueFunction.load(tmp_path).spec == SPEC


def test_what_cannot_be_tuned_is_refused():
    for kind in ("gaussian", "student"):
        with pytest.raises(InputError, match="has no denoising steps"):
            RewardTuning(make(kind), config())
    with pytest.raises(InputError, match="ddim"):
        RewardTuning(make("diffusion", sampler="ddim"), config())
    RewardTuning(make("diffusion", sampler="ddim"), config("prdp-forward"))
    with pytest.raises(InputError, match="--noise-level above 0"):
        RewardTuning(make("flow"), config(noise_level=0.0))
    with pytest.raises(InputError, match="--base-lr 0"):
        RewardTuning(make("flow"), config(base_lr=0.0))
    with pytest.raises(Exception, match="at most 1 for cps") as found:
        RewardTuning(make("flow"), config(noise_level=1.5))
    assert found.value.exit_code == 2  # an InputError of the other package


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampler": "ode"}, "with --sampler ode a flow draws none"),
        ({"critic_pretrain": "iql"}, "--critic-pretrain is of other agents"),
        ({"lipschitz": "spectral"}, "--lipschitz is of other agents"),
        ({"agent": "sac", "inner_steps": 4}, "--inner-steps is of agents that fine-tune"),
    ],
)
def test_settings_of_other_agents_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        check_tuning(dataclasses.replace(config(offline_updates=1), **settings))
    check_tuning(config(offline_updates=1))
    check_tuning(dataclasses.replace(TrainConfig(beta=2.0), agent="mine:Agent"))
