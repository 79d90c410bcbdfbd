"""Bounded critics: sigma <= c whatever is done to them; the adversarial penalty, in closed form."""

from __future__ import annotations

import copy

import pytest
import torch
from toy_data import spec

from offline.critics.calql import CalQL
from offline.critics.diversity import diversity
from offline.critics.iql import IQL
from offline.critics.lipschitz import (
    adversarial,
    gradient_norms,
    layer_sigmas,
    observe,
    squared_gap,
    watch,
)
from offline.critics.penalties import lipschitz_bound, penalties
from offline.critics.td import TDCritic
from offline.critics.value import ValueFunction
from offline.critics.value_config import ValueConfig
from offline.data.batch import Batch
from offline.errors import InputError, SpecError
from offline.learning.config import RLConfig
from offline.learning.sac import SAC
from offline.networks.spectral import SpectralBound

STATE, SLACK = {"state": (4,)}, 1 + 1e-3


def value_of(bound=1.0, ensemble=3, shapes=STATE, **rest):
    torch.manual_seed(0)
    rest = {"heads": "stacked", "hidden": (48, 40)} | rest
    return ValueFunction(
        spec(2).with_chunk(2), shapes, ensemble=ensemble, lipschitz_bound=bound, **rest
    )


def batch_of(rows=32, seed=1, shapes=STATE, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    obs = {
        key: torch.randint(256, (rows, *shape), generator=generator, dtype=torch.uint8)
        if len(shape) == 3
        else torch.randn(rows, *shape, generator=generator).to(dtype)
        for key, shape in shapes.items()
    }
    act = torch.rand(rows, 2, 2, generator=generator).to(dtype) * 2 - 1
    reward = 30 * torch.sin(3 * act[:, 0, 0])
    if "state" in obs:
        reward = reward + 50 * torch.sin(2 * obs["state"][:, 0])
    return Batch(
        obs=obs,
        act=act,
        reward=reward,
        next_obs=obs,
        discount=torch.zeros(rows),
        mc_return=reward,
        success=torch.ones(rows),
    )


def trained(bound, ensemble=3, steps=60, seed=0, **rest):
    critic = TDCritic(value_of(bound, ensemble, **rest), lr=3e-3, target_rate=0.1)
    for i in range(steps):
        batch = batch_of(seed=seed + i)
        critic.update(batch, torch.zeros(len(batch)), torch.Generator())
    return critic


def linear_of(ensemble=3, **rest):
    """Heads whose units are all on: Q_e is linear in state and action; with its gradients."""
    value = value_of(1e6, ensemble, **rest).double()
    with torch.no_grad():
        value.heads.obs_bias.fill_(100.0)
        for i, bias in enumerate(value.heads.biases):
            bias.fill_(100.0 ** (i + 2))
    matrices = [m.detach() for m in value.heads.matrices()]
    slope = matrices[0]
    for matrix in matrices[1:]:
        slope = torch.bmm(matrix, slope)
    return value, slope[:, 0]  # (E, S + H A)


# -- spectral


@pytest.mark.parametrize(("bound", "ensemble"), [(0.5, 2), (1.0, 10), (1.5, 1)])
def test_every_layer_is_within_the_bound_wherever_the_critic_goes(bound, ensemble, tmp_path):
    assert (layer_sigmas(value_of(bound, ensemble)) <= bound * SLACK).all()
    critic = trained(bound, ensemble)
    copied = copy.deepcopy(critic.value)
    loaded = ValueFunction.load(critic.value.save(tmp_path))
    for value in (critic.value, critic.target, copied, loaded):
        sigmas = layer_sigmas(value)
        assert sigmas.shape == (3, ensemble) and (sigmas <= bound * SLACK).all()
    assert (layer_sigmas(critic.value).amax(1) > 0.99 * bound).sum() >= 2  # and it does bind
    assert (layer_sigmas(trained(None, ensemble).value).amax(1) > bound * 1.1).any()


def test_a_copy_learns_on_within_the_bound_and_apart_from_the_original():
    value = trained(1.0).value
    before = [matrix.clone() for matrix in value.heads.matrices()]
    other = TDCritic(copy.deepcopy(value), lr=3e-3, target_rate=0.1)
    for i in range(30):
        other.update(batch_of(seed=100 + i), -50 * torch.ones(32), torch.Generator())
    for critic in (other.value, other.target):
        assert (layer_sigmas(critic) <= SLACK).all()
    assert all(torch.equal(a, b) for a, b in zip(before, value.heads.matrices(), strict=True))


@pytest.mark.parametrize("learner", [CalQL, IQL])
def test_offline_learners_keep_the_bound(learner):
    agent = learner(value_of(1.0), ValueConfig(hidden=(48, 40), ensemble=3, lr=3e-3))
    for i in range(20):
        agent.update(batch_of(seed=i), torch.Generator().manual_seed(i))
    for value in (agent.critic, agent.target):
        assert (layer_sigmas(value) <= SLACK).all()
    assert (layer_sigmas(agent.critic).amax(1) > 0.99).sum() >= 2


def test_the_constant_of_the_whole_is_the_product_of_the_layers():
    value, batch = trained(1.5).value, batch_of(200)
    other = batch_of(200, seed=2)
    with torch.no_grad():
        far = [value(b.obs, b.act[:, None])[..., 0] for b in (batch, other)]
    inputs = [torch.cat([b.obs["state"], b.act.flatten(1)], dim=1) for b in (batch, other)]
    ratio = (far[0] - far[1]).abs() / (inputs[0] - inputs[1]).norm(dim=1)
    product = layer_sigmas(value).prod(0)
    assert (ratio.amax(1) <= product).all() and (product <= 1.5**3 * SLACK**3).all()
    norms = gradient_norms(value, batch.obs, batch.act)
    assert (norms.amax(1) <= product).all() and (norms.amax(1) > 0.2 * product).all()


def test_saved_and_loaded_exactly(tmp_path):
    value, batch = trained(1.0).value, batch_of()
    folder = value.save(tmp_path)
    loaded = ValueFunction.load(folder)
    assert loaded.architecture["lipschitz_bound"] == 1.0
    with torch.no_grad():
        copied = copy.deepcopy(value)
        expected = value(batch.obs, batch.act[:, None])
        for same in (loaded, copied):
            assert torch.equal(same(batch.obs, batch.act[:, None]), expected)


def test_training_goes_on_bit_for_bit():
    def update(critic, first, count):
        for i in range(first, first + count):
            critic.update(batch_of(seed=i), torch.zeros(32), torch.Generator())

    one, two = (TDCritic(value_of(1.0), lr=3e-3, target_rate=0.1) for _ in range(2))
    update(one, 0, 5)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    update(one, 5, 5)
    update(two, 5, 5)
    for network in ("value", "target"):
        mine, theirs = (getattr(c, network).state_dict() for c in (one, two))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize("rows", [4, 64])
def test_a_few_heads_are_those_rows_of_all(rows):
    value, batch, which = trained(1.0, ensemble=4).value, batch_of(rows), torch.tensor([3, 1])
    act = batch.act[:, None].repeat(1, 5, 1, 1) * torch.rand(rows, 5, 1, 1)
    every = value(batch.obs, act)
    few = value.score(value.encode(batch.obs, which), act, which)
    torch.testing.assert_close(few, every[which])
    heads = value.heads
    state, flat = heads.project(value.encoder(batch.obs)).unflatten(-1, (4, -1)), act.flatten(2)
    for run in (heads._looped, heads._batched):
        torch.testing.assert_close(run(state, flat, None), every)


def test_bounded_heads_are_plain_relu_layers():
    value, batch = trained(1.0).value, batch_of()
    x = torch.cat([batch.obs["state"], batch.act.flatten(1)], dim=1).expand(3, -1, -1)
    heads = value.heads
    biases = [heads.obs_bias.unflatten(0, (3, -1)), *heads.biases]
    for i, (matrix, bias) in enumerate(zip(heads.matrices(), biases, strict=True)):
        x = torch.baddbmm(bias[:, None], x if i == 0 else x.relu(), matrix.mT)
    torch.testing.assert_close(value(batch.obs, batch.act[:, None]), x)


@pytest.mark.parametrize("shape", [(3, 20, 50), (2, 50, 7), (2, 1, 30), (2, 30, 1)])
def test_sigma_is_the_largest_singular_value(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.svdvals(weight)[:, 0]
    held = SpectralBound(weight, bound=2.0)
    torch.testing.assert_close(held.measure(weight), exact, rtol=1e-4, atol=0)
    inside = held.right_inverse(weight)
    torch.testing.assert_close(inside, weight * (2 / exact)[:, None, None], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(held.sigma(inside), torch.full((shape[0],), 2.0))
    assert held.right_inverse(0.1 * inside).equal(0.1 * inside)  # only ever made smaller


def test_a_direction_that_one_step_lifts_above_all_others_is_found():
    """Where power iteration would go on following what was the largest before."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 256, 256, generator=generator)
    held = SpectralBound(weight, bound=1.0)
    weight = held.right_inverse(weight)
    u, v = (torch.randn(2, 256, 1, generator=generator) for _ in range(2))
    lifted = weight + 0.9 * torch.bmm(
        u / u.norm(dim=1, keepdim=True), (v / v.norm(dim=1)[:, None]).mT
    )
    exact = torch.linalg.svdvals(lifted)[:, 0]
    assert (exact > 1.1).all()
    torch.testing.assert_close(held.measure(lifted), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("bound", [1e-6, 1e6])
def test_extreme_bounds_neither_overflow_nor_vanish(bound):
    weight = torch.randn(2, 40, 60, generator=torch.Generator().manual_seed(0)) * bound
    inside = SpectralBound(weight, bound).right_inverse(weight)
    sigmas = torch.linalg.svdvals(inside)[:, 0]
    torch.testing.assert_close(sigmas, torch.full((2,), bound), rtol=1e-3, atol=0)


def test_separate_heads_have_no_bound():
    with pytest.raises(SpecError, match='heads="stacked"'):
        value_of(1.0, heads="separate")


# -- measured


@pytest.mark.parametrize("rest", [{"bound": 1.0}, {"bound": None}, {"heads": "separate"}])
def test_gradient_norms_are_autograds(rest):
    value, batch = value_of(**({"bound": None} | rest)), batch_of(5)
    value.encoder.normalizer.std.fill_(2.0)
    found = gradient_norms(value, batch.obs, batch.act)
    for e in range(3):
        for b in range(5):
            standardised = (batch.obs["state"][b : b + 1] / 2).requires_grad_()
            projected = value.heads.project(standardised)
            q = value.score(projected, batch.act[b : b + 1, None])[e, 0, 0]
            (gradient,) = torch.autograd.grad(q, [standardised])
            torch.testing.assert_close(found[e, b], gradient.norm())


def test_what_is_observed():
    value, batch = trained(1.0).value, batch_of(64)
    metrics = observe(value, batch)
    exact = layer_sigmas(value).amax(1)
    for i in range(3):
        assert float(metrics[f"lipschitz/sigma_layer{i + 1}"]) == pytest.approx(
            float(exact[i]), rel=1e-3
        )
    norms = gradient_norms(value, {"state": batch.obs["state"][::4]}, batch.act[::4])
    assert float(metrics["lipschitz/empirical_max"]) == pytest.approx(float(norms.max()))
    assert float(metrics["lipschitz/empirical_median"]) == pytest.approx(float(norms.median()))
    assert set(observe(value_of(None), batch)) == {
        "lipschitz/empirical_median",
        "lipschitz/empirical_max",
    }
    generator, seen = torch.Generator().manual_seed(0), 0
    for _ in range(80):
        loss, now = watch(value, batch, generator)
        assert float(loss) == 0
        seen += bool(now)
    assert 2 <= seen <= 25


# -- adversarial


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_a_linear_q_gives_the_closed_form(attack):
    """max over |d|_inf <= epsilon of (w d)^2 is (epsilon |w|_1)^2, whatever the state."""
    value, slope = linear_of()
    batch = batch_of(dtype=torch.float64)
    expected = (0.3 * slope[:, :4].abs().sum(1)) ** 2  # of the state alone, in its standard units
    gap = squared_gap(value, batch.obs["state"], batch.act, 0.3, attack, torch.Generator())
    torch.testing.assert_close(gap, expected[:, None].expand(-1, 32), rtol=1e-6, atol=0)
    loss, metrics = adversarial(2.0, 0.3, attack)(value, batch, torch.Generator())
    torch.testing.assert_close(loss.detach(), 2 * expected.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(metrics["lipschitz/penalty"], expected.sum(), rtol=1e-6, atol=0)


def test_uniform_noise_on_a_linear_q_has_the_mean_in_closed_form():
    """E (w d)^2 = epsilon^2 |w|_2^2 / 3."""
    value, slope = linear_of()
    batch = batch_of(20_000, dtype=torch.float64)
    gap = squared_gap(value, batch.obs["state"], batch.act, 0.3, "uniform", torch.Generator())
    expected = 0.3**2 * slope[:, :4].square().sum(1) / 3
    torch.testing.assert_close(gap.mean(1), expected, rtol=0.03, atol=0)


@pytest.mark.parametrize("bound", [None, 2.0])
def test_more_steps_find_no_less(bound):
    value, batch = trained(bound).value, batch_of(128)
    uniform, fgsm, pgd = (
        squared_gap(
            value, batch.obs["state"], batch.act, 0.5, attack, torch.Generator().manual_seed(3)
        ).detach()
        for attack in ("uniform", "fgsm", "pgd")
    )
    assert (uniform >= 0).all() and (fgsm >= 0).all()
    assert (pgd >= fgsm * (1 - 1e-4)).all() and (pgd > fgsm * 1.01).float().mean() > 0.1
    assert fgsm.mean() > 1.5 * uniform.mean()


@pytest.mark.parametrize("rest", [{"bound": 5.0}, {"bound": None}, {"heads": "separate"}])
@pytest.mark.parametrize("make", [lambda: adversarial(1.0, 0.2), lambda: diversity(1.0)])
def test_gradients_against_finite_differences(make, rest):
    value = value_of(**({"bound": None, "hidden": (8, 6)} | rest)).double()
    batch, penalty = batch_of(16, dtype=torch.float64), make()
    params = list(value.heads.parameters())

    def loss():
        return penalty(value, batch, torch.Generator().manual_seed(5))[0]

    gradients = torch.autograd.grad(loss(), params, allow_unused=True)
    generator, size = torch.Generator().manual_seed(6), 1e-6
    for _ in range(3):
        along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]
        slope = sum(
            float((g * d).sum()) for g, d in zip(gradients, along, strict=True) if g is not None
        )
        ends = []
        for sign in (1, -2):
            with torch.no_grad():
                for p, d in zip(params, along, strict=True):
                    p.add_(d, alpha=sign * size)
            ends.append(float(loss().detach()))
        with torch.no_grad():
            for p, d in zip(params, along, strict=True):
                p.add_(d, alpha=size)
        assert abs(slope) > 1e-4
        assert (ends[0] - ends[1]) / (2 * size) == pytest.approx(slope, rel=1e-4)


def test_it_lowers_the_slopes_of_what_is_learnt():
    gaps, steepest, batch = [], [], batch_of(256, seed=1000)
    for penalty in (None, adversarial(3.0, 0.2)):
        critic = TDCritic(value_of(None), lr=3e-3, target_rate=0.1, penalty=penalty)
        generator = torch.Generator().manual_seed(0)
        for i in range(150):
            critic.update(batch_of(seed=i), torch.zeros(32), generator)
        found = squared_gap(critic.value, batch.obs["state"], batch.act, 0.2, "fgsm", generator)
        gaps.append(float(found.detach().mean()))
        steepest.append(float(gradient_norms(critic.value, batch.obs, batch.act).max()))
    assert gaps[1] < 0.5 * gaps[0] and steepest[1] < 0.5 * steepest[0]


def test_images_are_left_alone():
    shapes = STATE | {"camera": (16, 16, 3)}
    value, batch = value_of(None, shapes=shapes), batch_of(4, shapes=shapes)
    loss, _ = adversarial(1.0, 0.5)(value, batch, torch.Generator())
    loss.backward()
    assert all(p.grad is None for p in value.encoder.parameters())
    assert float(loss.detach()) > 0
    with torch.no_grad():
        value.heads.first_layer()[0][..., :4] = 0  # the images' part stays
        assert float(adversarial(1.0, 0.5)(value, batch, torch.Generator())[0]) == 0


def test_images_alone_have_nothing_to_change():
    shapes = {"camera": (16, 16, 3)}
    value, batch = value_of(1.0, shapes=shapes), batch_of(4, shapes=shapes)
    with pytest.raises(InputError, match="--lipschitz spectral"):
        adversarial(1.0, 0.5)(value, batch, torch.Generator())
    assert "lipschitz/empirical_max" not in observe(value, batch)


# -- by configuration


def test_by_configuration():
    value, batch = value_of(None), batch_of()

    def total(**options):
        penalty = penalties(RLConfig(**options))
        loss, metrics = penalty(value, batch, torch.Generator().manual_seed(0))
        return float(loss.detach()), set(metrics)

    assert penalties(RLConfig()) is None and lipschitz_bound(RLConfig()) is None
    assert lipschitz_bound(RLConfig(lipschitz="spectral", lipschitz_bound=2.5)) == 2.5
    assert lipschitz_bound(RLConfig(lipschitz="adversarial")) is None
    harsh = {"lipschitz": "adversarial", "lipschitz_weight": 7.0, "lipschitz_radius": 0.4}
    one, of_one = total(**harsh)
    direct = adversarial(7.0, 0.4)(value, batch, torch.Generator().manual_seed(0))[0]
    assert one == pytest.approx(float(direct.detach())) and "lipschitz/penalty" in of_one
    other, of_other = total(value_diversity=3.0)
    both, of_both = total(**harsh, value_diversity=3.0)
    assert both == pytest.approx(one + other, rel=1e-5) and of_other == {"critic/gradient_cosine"}
    assert of_both >= of_other | {"lipschitz/penalty"}
    assert total(lipschitz="spectral")[0] == 0
    with pytest.raises(InputError, match="--value-ensemble"):
        penalties(RLConfig(value_diversity=1.0, value_ensemble=1, subset=1))


def test_an_agent_with_everything():
    config = RLConfig(
        lipschitz="adversarial", value_diversity=1.0, value_ensemble=3, hidden=(48, 40), lr=3e-3
    )
    agent = SAC(value_of(1.0), config, penalty=penalties(config))
    generator = torch.Generator().manual_seed(0)
    for i in range(20):
        metrics = agent.update_critic(batch_of(seed=i), generator)
        metrics |= agent.update_policy(batch_of(seed=i), generator)
    assert all(torch.isfinite(m) for m in metrics.values())
    assert {"lipschitz/penalty", "critic/gradient_cosine", "critic/td_loss"} <= set(metrics)
    for value in (agent.critic.value, agent.critic.target):
        assert (layer_sigmas(value) <= SLACK).all()
