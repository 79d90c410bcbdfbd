"""PRDP by hand, its optimum on policies where it is known, and its limit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion.errors import InputError
from diffusion.objective import Rollouts, tie_fraction
from diffusion.prdp import PRDP


def rollouts(reward, group=None, ref=None, old=None, weight=(0.5, 0.5), dimensions=10) -> Rollouts:
    """Reference and old log-probs are zero unless given, so that a log-prob is a log-ratio."""
    reward = torch.tensor(reward)
    zeros = torch.zeros(len(reward), len(weight))
    return Rollouts(
        log_prob_old=zeros if old is None else torch.tensor(old),
        log_prob_ref=zeros if ref is None else torch.tensor(ref),
        reward=reward,
        group=torch.zeros(len(reward), dtype=torch.long) if group is None else torch.tensor(group),
        step_weight=torch.tensor(weight),
        dimensions=dimensions,
    )


def value_and_gradient(objective: PRDP, log_prob, data: Rollouts) -> tuple[float, Tensor, dict]:
    leaf = torch.tensor(log_prob).requires_grad_()
    loss, metrics = objective(leaf, data)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.shape == () and metrics["prdp/loss"] == loss.item()
    return loss.item(), gradient, metrics


TOWARDS = [[0.3, 0.1], [0.0, -0.2]]  # r = .2 and -.1: the difference is .3, the target .5
AWAY = [[-0.3, -0.1], [0.0, 0.2]]  # r = -.2 and .1


def test_two_chains_without_clip():
    data = rollouts([1.0, 0.5])
    loss, gradient, _ = value_and_gradient(PRDP(beta=1.0, clip=None), TOWARDS, data)
    assert loss == pytest.approx((0.3 - 0.5) ** 2)
    # d loss / d r = 2 (.3 - .5) = -.4, times a weight of 1/2 per step, up for the better chain
    torch.testing.assert_close(gradient, torch.tensor([[-0.2, -0.2], [0.2, 0.2]]))


def test_the_reference_is_subtracted_and_the_order_of_chains_is_free():
    ref = [[1.0, 2.0], [3.0, 4.0]]
    data = rollouts([0.5, 1.0], ref=ref, old=ref)
    shifted = [[1.0, 1.8], [3.3, 4.1]]  # TOWARDS, its chains swapped, plus the reference
    loss, _, _ = value_and_gradient(PRDP(beta=1.0, clip=None), shifted, data)
    assert loss == pytest.approx((0.3 - 0.5) ** 2, rel=1e-5)


def test_two_chains_where_the_clip_stops_them():
    """Clipped at .25: r = .175 and -.1, so l_clip = (.275 - .5)^2 beats l = .04."""
    loss, gradient, metrics = value_and_gradient(
        PRDP(beta=1.0, clip=0.25), TOWARDS, rollouts([1.0, 0.5])
    )
    assert loss == pytest.approx(0.225**2)
    # -.45 for the difference, 1/2 a step, nothing through the entry beyond the clip
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -0.225], [0.225, 0.225]]))
    assert metrics["prdp/clip_fraction"] == 0.25 and metrics["prdp/clipped_pairs"] == 1


def test_the_gradient_vanishes_where_every_step_is_clipped_towards_the_target():
    loss, gradient, metrics = value_and_gradient(
        PRDP(beta=1.0, clip=0.05), TOWARDS, rollouts([1.0, 0.5])
    )
    # r = .05 and (0 - .05)/2; the entry at 0 is within the clip and keeps its gradient
    assert loss == pytest.approx((0.075 - 0.5) ** 2)
    assert gradient.nonzero().tolist() == [[1, 0]]
    assert metrics["prdp/clip_fraction"] == 0.75
    everywhere = [[0.3, 0.1], [-0.1, -0.2]]
    _, gradient, metrics = value_and_gradient(
        PRDP(beta=1.0, clip=0.05), everywhere, rollouts([1.0, 0.5])
    )
    assert not gradient.any() and metrics["prdp/clip_fraction"] == 1


def test_moving_away_from_the_target_is_never_clipped():
    """l = (-.3 - .5)^2 beats l_clip = (-.275 - .5)^2, and the whole gradient pulls back."""
    loss, gradient, metrics = value_and_gradient(
        PRDP(beta=1.0, clip=0.25), AWAY, rollouts([1.0, 0.5])
    )
    assert loss == pytest.approx(0.64)
    torch.testing.assert_close(gradient, torch.tensor([[-0.8, -0.8], [0.8, 0.8]]))
    assert metrics["prdp/clipped_pairs"] == 0 and metrics["prdp/clip_fraction"] == 0.25


def test_the_clip_is_around_the_old_ratio():
    old = [[0.25, 0.1], [0.0, -0.2]]
    data = rollouts([1.0, 0.5], old=old)
    loss, _, metrics = value_and_gradient(PRDP(beta=1.0, clip=0.1), TOWARDS, data)
    assert loss == pytest.approx(0.04) and metrics["prdp/clip_fraction"] == 0
    loss, _, _ = value_and_gradient(PRDP(beta=1.0, clip=0.01), TOWARDS, data)
    assert loss == pytest.approx(((0.26 + 0.1) / 2 + 0.1 - 0.5) ** 2)


def test_three_chains_a_tie_drops_out():
    """r = .2, 0, -.1; the first two tie, so the pairs are (0, 2) and (1, 2), targets .5."""
    log_prob = [[0.3, 0.1], [0.1, -0.1], [0.0, -0.2]]
    data = rollouts([1.0, 1.0, 0.5])
    loss, _, metrics = value_and_gradient(PRDP(beta=1.0, clip=None), log_prob, data)
    assert loss == pytest.approx(((0.3 - 0.5) ** 2 + (0.1 - 0.5) ** 2) / 2)
    assert metrics["prdp/pairs"] == 2
    assert metrics["prdp/tie_fraction"] == pytest.approx(1 / 3)
    clipped, _, metrics = value_and_gradient(PRDP(beta=1.0, clip=0.15), log_prob, data)
    # chain 0: (.15 + .1)/2 = .125; chain 2: -.15/2 = -.075; chain 1 is within
    assert clipped == pytest.approx(((0.2 - 0.5) ** 2 + (0.075 - 0.5) ** 2) / 2)
    assert metrics["prdp/clipped_pairs"] == 1


def test_three_chains_three_pairs_and_beta():
    log_prob = [[0.3, 0.1], [0.1, -0.1], [0.0, -0.2]]
    data = rollouts([3.0, 2.0, 0.0])
    loss, _, metrics = value_and_gradient(PRDP(beta=10.0, clip=None), log_prob, data)
    expected = ((0.2 - 0.1) ** 2 + (0.3 - 0.3) ** 2 + (0.1 - 0.2) ** 2) / 3
    assert loss == pytest.approx(expected) and metrics["prdp/pairs"] == 3


def test_pairs_are_within_a_group_id():
    log_prob, reward = [[0.3, 0.1], [0.0, -0.2]] * 2, [1.0, 0.5, 10.0, 9.5]
    data = rollouts(reward, group=[7, 7, 3, 3])
    loss, _, metrics = value_and_gradient(PRDP(beta=1.0, clip=None), log_prob, data)
    assert loss == pytest.approx(0.04) and metrics["prdp/pairs"] == 2
    alone = rollouts(reward, group=[0, 1, 2, 3])
    loss, gradient, metrics = value_and_gradient(PRDP(beta=1.0, clip=0.1), log_prob, alone)
    assert loss == 0 and not gradient.any()
    assert metrics["prdp/tie_fraction"] == tie_fraction(alone.reward, alone.group) == 1


def test_weights_aggregate_the_steps():
    """r = .75 * .3 + .25 * .1 = .25 and -.05; a step of weight 0 counts nowhere."""
    data = rollouts([1.0, 0.5], weight=(0.75, 0.25, 0.0))
    log_prob = [[0.3, 0.1, 99.0], [0.0, -0.2, -99.0]]
    loss, gradient, metrics = value_and_gradient(PRDP(beta=1.0, clip=1.0), log_prob, data)
    assert loss == pytest.approx((0.3 - 0.5) ** 2)
    assert not gradient[:, 2].any() and metrics["prdp/clip_fraction"] == 0


def test_units():
    """T = 2 scored steps, D = 10: r_nats = 20 r_per_dim, a step's log-ratio 10 times itself."""
    beta, eps = PRDP(beta=0.1, clip=0.5, unit="nats").per_dim(2, 10)
    assert beta == pytest.approx(2.0) and eps == pytest.approx(0.05)
    assert PRDP(beta=0.1, clip=None, unit="nats").per_dim(2, 10)[1] is None
    assert PRDP(beta=0.1, clip=0.5).per_dim(2, 10) == (0.1, 0.5)
    data = rollouts([1.0, 0.5])
    per_dim = value_and_gradient(PRDP(beta=2.0, clip=0.05), TOWARDS, data)
    nats = value_and_gradient(PRDP(beta=0.1, clip=0.5, unit="nats"), TOWARDS, data)
    assert nats[0] == pytest.approx(per_dim[0]) and torch.allclose(nats[1], per_dim[1])
    summed = PRDP(beta=0.1, clip=None, unit="nats", aggregate="sum")
    # in nats: the difference is 20 * .3 = 6, the target .5 / .1 = 5
    assert value_and_gradient(summed, TOWARDS, data)[0] == pytest.approx((6 - 5) ** 2)


@pytest.mark.parametrize(
    "options", [{"beta": 0.0}, {"clip": 0.0}, {"unit": "bits"}, {"aggregate": "median"}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(InputError):
        PRDP(**options)


def gaussian_minimiser(objective: PRDP, beta_nats: float) -> tuple[Tensor, Tensor]:
    """The minimiser over the means of T = 2 Gaussian steps in D = 3, and the known optimum.

    The reference is N(0, sigma_t^2), the reward sum_t w_t x_t, so the optimum of reward minus
    beta KL is N(sigma_t^2 w_t / beta, sigma_t^2). Log-ratios are affine in the means up to a
    constant that pairs cancel: the loss is quadratic and one Newton step finds its minimum.
    """
    random = torch.Generator().manual_seed(0)
    sigma = torch.tensor([0.5, 1.5], dtype=torch.float64)[:, None]
    w, x = torch.randn(1 + 40, 2, 3, generator=random, dtype=torch.float64).split([1, 40])
    x = sigma * x

    def log_prob(mean: Tensor) -> Tensor:
        return torch.distributions.Normal(mean, sigma).log_prob(x).mean(-1)

    zero = torch.zeros(2, 3, dtype=torch.float64)
    data = Rollouts(
        log_prob_old=log_prob(zero),
        log_prob_ref=log_prob(zero),
        reward=(w * x).sum((1, 2)),
        group=torch.arange(40) // 20,
        step_weight=torch.tensor([0.5, 0.5]),
        dimensions=3,
    )

    def loss(flat: Tensor) -> Tensor:
        return objective(log_prob(flat.reshape(2, 3)), data)[0]

    start = zero.flatten().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(start), start)
    hessian = torch.autograd.functional.hessian(loss, zero.flatten())
    return -torch.linalg.solve(hessian, gradient), (sigma**2 * w[0] / beta_nats).flatten()


@pytest.mark.parametrize("aggregate", ["mean", "sum"])
@pytest.mark.parametrize("unit", ["per_dim", "nats"])
def test_the_minimiser_is_the_kl_regularised_optimum_in_every_unit(unit, aggregate):
    beta = 0.7
    stated = beta if unit == "nats" else beta * 2 * 3  # T D
    objective = PRDP(beta=stated, clip=None, unit=unit, aggregate=aggregate)
    found, optimum = gaussian_minimiser(objective, beta)
    torch.testing.assert_close(found, optimum, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sampled", [False, True])
def test_converges_to_the_optimum_of_a_categorical_policy(sampled):
    """pi* = pi_ref exp(R / beta), with the clip on and five inner steps an epoch.

    One step and one dimension, where all units agree.
    """
    random = torch.Generator().manual_seed(0)
    reference = torch.randn(8, generator=random, dtype=torch.float64).log_softmax(0)
    reward = torch.rand(8, generator=random, dtype=torch.float64)
    beta = 0.2
    optimum = (reference + reward / beta).log_softmax(0)
    logits = reference.clone().requires_grad_()
    objective = PRDP(beta=beta, clip=0.1)
    optimiser = torch.optim.SGD([logits], lr=0.2)

    def divergence() -> float:
        current = logits.detach().log_softmax(0)
        return float((current.exp() * (current - optimum)).sum())

    assert divergence() > 0.1
    clipped = 0.0
    for _ in range(150):
        old = logits.detach().log_softmax(0)
        actions = torch.arange(8)
        if sampled:
            actions = torch.multinomial(old.exp(), 16, replacement=True, generator=random)
        data = Rollouts(
            log_prob_old=old[actions, None],
            log_prob_ref=reference[actions, None],
            reward=reward[actions],
            group=torch.zeros(len(actions), dtype=torch.long),
            step_weight=torch.ones(1),
            dimensions=1,
        )
        for _ in range(5):
            loss, metrics = objective(logits.log_softmax(0)[actions, None], data)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            clipped = max(clipped, metrics["prdp/clip_fraction"])
    assert clipped > 0.1  # the clip did act on the way
    assert divergence() < 1e-3


def cosine_with_centred_reinforce(beta: float) -> float:
    """Cosine between dL/d log-prob and that of -sum_a (R_a - mean of its prompt) log p(a)."""
    random = torch.Generator().manual_seed(0)
    prompts, images, steps = 4, 8, 10
    ratio = 0.1 * torch.randn(prompts * images, steps, generator=random)
    reward = torch.rand(prompts, images, generator=random)
    data = Rollouts(
        log_prob_old=ratio,
        log_prob_ref=torch.zeros_like(ratio),
        reward=reward.flatten(),
        group=torch.arange(prompts).repeat_interleave(images),
        step_weight=torch.full((steps,), 1 / steps),
        dimensions=64,
    )
    leaf = ratio.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(PRDP(beta=beta)(leaf, data)[0], leaf)
    centred = -(reward - reward.mean(1, keepdim=True)).flatten()[:, None].expand_as(gradient)
    return float(torch.cosine_similarity(gradient.flatten(), centred.flatten(), dim=0))


def test_at_the_published_beta_it_is_centred_reinforce_and_at_a_large_one_not():
    assert cosine_with_centred_reinforce(3e-5) > 0.9999
    assert 0.9 < cosine_with_centred_reinforce(1.0) < 0.9999
    assert cosine_with_centred_reinforce(10.0) < 0.9
