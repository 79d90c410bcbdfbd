"""Each objective by hand, and the identities between them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusion.errors import InputError
from diffusion.objective import Rollouts
from diffusion.objectives.awm import AWM
from diffusion.objectives.ddpo import DDPO, PromptTracker
from diffusion.objectives.dpo import DPO
from diffusion.objectives.grpo import GRPO
from diffusion.objectives.nft import NFT
from diffusion.objectives.ppo import group_advantage
from diffusion.objectives.prdp_forward import PRDPForward
from diffusion.objectives.rtb import RTB
from diffusion.prdp import PRDP


def rollouts(reward, group=None, steps=2, old=None, ref=None, dimensions=10) -> Rollouts:
    """Old and reference tables are zero unless given."""
    reward = torch.tensor(reward, dtype=torch.float64)
    zeros = torch.zeros(len(reward), steps, dtype=torch.float64)
    return Rollouts(
        log_prob_old=zeros if old is None else torch.tensor(old, dtype=torch.float64),
        log_prob_ref=zeros if ref is None else torch.tensor(ref, dtype=torch.float64),
        reward=reward,
        group=torch.zeros(len(reward), dtype=torch.long) if group is None else torch.tensor(group),
        step_weight=torch.full((steps,), 1 / steps, dtype=torch.float64),
        dimensions=dimensions,
    )


def value_and_gradient(objective, table, data: Rollouts) -> tuple[float, Tensor]:
    leaf = torch.tensor(table, dtype=torch.float64).requires_grad_()
    loss, metrics = objective(leaf, data)
    assert all(math.isfinite(value) for value in metrics.values())
    return loss.item(), torch.autograd.grad(loss, leaf)[0]


def test_advantages_of_a_group_are_centred_and_scaled_and_ties_get_none():
    got = group_advantage(torch.tensor([1.0, 3.0, 5.0, 5.0]), torch.tensor([7, 7, 2, 2]))
    torch.testing.assert_close(got, torch.tensor([-1.0, 1.0, 0.0, 0.0]).double(), atol=2e-6, rtol=0)


def test_ddpo_by_hand():
    """A = (-1, 1). Ratios e^.1 and 1: the first image's loss is e^.1, held by no clip from above;
    with eps .05 the second image's step of ratio e^.2 counts as 1.05."""
    objective = DDPO(clip=0.05)
    data = objective.prepare(rollouts([0.0, 2.0]), ["a", "b"])
    table = [[0.1, 0.0], [0.2, 0.0]]
    loss, gradient = value_and_gradient(objective, table, data)
    expected = ((math.exp(0.1) + 1) / 2 - (1.05 + 1) / 2) / 2
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradient[1, 0] == 0  # clipped: better already
    assert gradient[0, 0] == pytest.approx(math.exp(0.1) / 4, rel=1e-5)
    assert gradient[1, 1] == pytest.approx(-1 / 4, rel=1e-5)


def test_the_tracker_uses_a_prompts_own_rewards_once_it_knows_enough_of_them():
    tracker = PromptTracker(size=4, least=3)
    first = tracker.update(["a", "b"], torch.tensor([0.0, 10.0]))
    torch.testing.assert_close(first, torch.tensor([-1.0, 1.0]).double(), atol=1e-5, rtol=0)
    tracker.update(["a", "b"], torch.tensor([0.0, 10.0]))
    # Third time: of "a" 0, 0, 3 are known (mean 1, std sqrt 2); of "b" 10, 10, 10.
    third = tracker.update(["a", "b"], torch.tensor([3.0, 10.0]))
    torch.testing.assert_close(third, torch.tensor([2**0.5, 0.0]).double(), atol=1e-5, rtol=0)


def test_the_trackers_memory_comes_back_from_json():
    import json

    one, other = DDPO(), DDPO()
    one.prepare(rollouts([0.0, 2.0]), ["a", "b"])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    again = [o.prepare(rollouts([5.0, 6.0]), ["a", "b"]).advantage for o in (one, other)]
    torch.testing.assert_close(*again, rtol=0, atol=0)


def test_grpo_adds_its_kl_and_has_ddpos_loss_otherwise():
    data = rollouts([0.0, 2.0, 1.0, 3.0], [0, 0, 1, 1])
    objective = GRPO(clip=0.1, kl=0.5)
    data = objective.prepare(data, list("abcd"))
    table = torch.zeros(4, 2, 2, dtype=torch.float64)
    table[..., 1] = 0.3
    with_kl, _ = value_and_gradient(objective, table.tolist(), data)
    without, _ = value_and_gradient(GRPO(clip=0.1), table[..., 0].tolist(), data)
    assert with_kl == pytest.approx(without + 0.5 * 0.3)
    assert without == pytest.approx(0.0, abs=1e-9)  # ratios 1, advantages centred


def test_normalised_ratios_have_one_spread_and_leave_the_first_gradient_alone():
    from diffusion.objectives.grpo import normalised

    table = torch.tensor([[0.4, 0.01], [0.0, -0.01], [-0.1, 0.03]], dtype=torch.float64)
    out = normalised(table, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(out.mean(0), torch.zeros(2).double())
    spread = out.square().mean(0).sqrt()
    torch.testing.assert_close(spread[0], spread[1])
    data = GRPO().prepare(rollouts([0.0, 2.0]), ["a", "b"])
    zero = [[0.0, 0.0], [0.0, 0.0]]
    _, plain = value_and_gradient(GRPO(), zero, data)
    _, same = value_and_gradient(GRPO(normalise_ratio=True), zero, data)
    torch.testing.assert_close(plain, same)


def test_rtb_is_half_of_prdps_unclipped_difference_over_all_ordered_pairs():
    """a = b and ties included: they add nothing to the sum, but count in the mean."""
    random = torch.Generator().manual_seed(0)
    table = torch.randn(6, 3, generator=random, dtype=torch.float64)
    reward = [0.0, 1.0, 1.0, 0.5, 2.0, 0.1]
    data = rollouts(reward, [0, 0, 0, 1, 1, 1], steps=3)
    beta = 0.7
    loss, _ = value_and_gradient(RTB(beta=beta), table.tolist(), data)
    u = table.mean(1) - torch.tensor(reward).double() / beta
    groups = (u[:3], u[3:])
    pairs = [(g[:, None] - g[None]).square().mean() / 2 for g in groups]
    assert loss == pytest.approx(float(sum(pairs)) / 2)
    # PRDP itself: pairs with R(a) > R(b), whose number is known.
    prdp, _ = value_and_gradient(PRDP(beta=beta, clip=None), table.tolist(), data)
    tied = float((u[1] - u[2]) ** 2)
    assert loss == pytest.approx((2 * (5 * prdp + tied)) / 9 / 2 / 2)


def test_rtb_and_prdp_agree_on_units():
    table = [[0.3, 0.1], [0.0, -0.2]]
    data = rollouts([1.0, 0.0], dimensions=10)
    nats, _ = value_and_gradient(RTB(beta=0.1, unit="nats"), table, data)
    per_dim, _ = value_and_gradient(RTB(beta=0.1 * 2 * 10), table, data)
    assert nats == pytest.approx(per_dim)


def test_prdp_forward_is_prdp_on_its_table_and_its_nats_know_no_number_of_draws():
    table = [[-0.3, -0.1], [0.0, -0.2]]
    data = rollouts([1.0, 0.0], dimensions=10)
    forward, gradient = value_and_gradient(PRDPForward(beta=0.5, clip=0.05), table, data)
    chain, expected = value_and_gradient(PRDP(beta=0.5, clip=0.05), table, data)
    assert forward == pytest.approx(chain)
    torch.testing.assert_close(gradient, expected)
    nats, _ = value_and_gradient(PRDPForward(beta=0.05, clip=0.5, unit="nats"), table, data)
    assert nats == pytest.approx(forward)  # 10 dimensions: beta 0.5, clip 0.05


def test_nft_by_hand():
    objective = NFT(mix=0.1)
    data = objective.prepare(rollouts([0.0, 2.0]), ["a", "a"])
    # A = -1 and 1, so r = .4 and .6.
    torch.testing.assert_close(data.advantage, torch.tensor([0.4, 0.6]).double(), atol=1e-6, rtol=0)
    table = [[[1.0, 2.0], [1.0, 2.0]], [[3.0, 4.0], [3.0, 4.0]]]
    loss, gradient = value_and_gradient(objective, table, data)
    assert loss == pytest.approx((0.4 * 1 + 0.6 * 2 + 0.6 * 3 + 0.4 * 4) / 2, rel=1e-5)
    torch.testing.assert_close(
        gradient[0, 0], torch.tensor([0.4, 0.6]).double() / 4, atol=1e-6, rtol=0
    )


def test_awm_by_hand():
    """At the rollout all ratios are 1: the loss is the distance, and the gradient -A / (M S)."""
    objective = AWM(clip=0.01, kl=2.0)
    data = objective.prepare(rollouts([0.0, 2.0]), ["a", "a"])
    table = [[[0.0, 0.5], [0.0, 0.5]], [[0.0, 0.5], [0.0, 0.5]]]
    loss, gradient = value_and_gradient(objective, table, data)
    assert loss == pytest.approx(2 * 0.5, abs=1e-6)
    assert gradient[0, 0, 0] == pytest.approx(1 / 4, rel=1e-5)
    assert gradient[1, 0, 0] == pytest.approx(-1 / 4, rel=1e-5)
    assert gradient[0, 0, 1] == pytest.approx(2 / 4)


def test_dpo_by_hand():
    """The table is -l: the chosen image gained .1 against the reference, the rejected lost .1."""
    objective = DPO(beta=3.0)
    data = rollouts([1.0, 0.0], steps=1, ref=[[-1.0], [-1.0]])
    loss, gradient = value_and_gradient(objective, [[-0.9], [-1.1]], data)
    assert loss == pytest.approx(math.log(1 + math.exp(-3 * 0.2)))
    assert gradient[0, 0] == pytest.approx(-3 / (1 + math.exp(0.6)))
    _, metrics = objective(torch.tensor([[-0.9], [-1.1]]).double(), data)
    assert metrics["dpo/accuracy"] == 1.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: DDPO(clip=0.0),
        lambda: DDPO(clip=1.0),
        lambda: GRPO(kl=-1.0),
        lambda: RTB(beta=0.0),
        lambda: RTB(unit="miles"),
        lambda: PRDPForward(beta=-1.0),
        lambda: NFT(mix=0.0),
        lambda: AWM(kl=-0.1),
        lambda: DPO(beta=0.0),
    ],
)
def test_constants_that_cannot_be_are_refused(make):
    with pytest.raises(InputError):
        make()
