"""Rows that are several samples each, of different lengths: an episode's decisions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffusion.objective import Rollouts
from diffusion.objectives.awm import AWM
from diffusion.objectives.ddpo import DDPO
from diffusion.objectives.grpo import GRPO
from diffusion.objectives.nft import NFT
from diffusion.objectives.prdp_forward import PRDPForward
from diffusion.objectives.rtb import RTB
from diffusion.prdp import PRDP

STEPS, LONGEST = 2, 3  # denoising steps of a sample, samples of the longest row
LENGTHS = (3, 1, 2, 2)
OBJECTIVES = {
    "prdp": PRDP(beta=1.0, clip=0.05, unit="nats"),
    "rtb": RTB(beta=1.0, unit="nats"),
    "ddpo": DDPO(clip=0.05),
    "grpo": GRPO(clip=0.05, kl=0.3),
    "grpo normalised": GRPO(clip=0.05, normalise_ratio=True),
    "prdp-forward": PRDPForward(beta=1.0, clip=0.05, unit="nats", draws=STEPS),
    "nft": NFT(draws=STEPS, kl=0.1),
    "awm": AWM(clip=0.05, draws=STEPS),
}
CHANNELS = {"grpo": 2, "nft": 3, "awm": 2}


def weights(lengths=LENGTHS) -> torch.Tensor:
    """(M, LONGEST * STEPS): the mean over each sample's steps, 0 past the end."""
    sample = torch.arange(LONGEST).repeat_interleave(STEPS)
    return (sample[None] < torch.tensor(lengths)[:, None]).double() / STEPS


def rows(name: str, weight: torch.Tensor) -> tuple[torch.Tensor, Rollouts]:
    draw = torch.Generator().manual_seed(3)
    count = CHANNELS.get(name, 1)
    table = 0.1 * torch.randn(4, LONGEST * STEPS, count, generator=draw, dtype=torch.float64)
    old, reference = 0.1 * torch.randn(2, 4, LONGEST * STEPS, generator=draw, dtype=torch.float64)
    rollouts = Rollouts(
        old,
        reference,
        torch.tensor([1.0, 0.0, 0.5, 2.0]),
        torch.tensor([0, 0, 1, 1]),
        weight,
        dimensions=4,
        scored_steps=STEPS,
    )
    prepare = getattr(OBJECTIVES[name], "prepare", None)
    rollouts = rollouts if prepare is None else prepare(rollouts, ["a", "a", "b", "b"])
    return table if count > 1 else table[..., 0], rollouts


def gradient(name: str, table: torch.Tensor, rollouts: Rollouts) -> tuple[float, torch.Tensor]:
    leaf = table.clone().requires_grad_()
    loss, _ = OBJECTIVES[name](leaf, rollouts)
    return float(loss.detach()), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_past_the_end_of_a_row_counts_for_nothing(name):
    table, rollouts = rows(name, weights())
    loss, slope = gradient(name, table, rollouts)
    past = rollouts.step_weight == 0
    assert bool((slope[past] == 0).all()) and float(slope.abs().sum()) > 0
    other = table.clone()
    other[past] += 7.0
    changed = replace(rollouts, log_prob_old=rollouts.log_prob_old - 3.0 * past)
    assert gradient(name, other, changed)[0] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_of_one_sample_are_what_they_always_were(name):
    one = torch.full((LONGEST * STEPS,), 1 / (LONGEST * STEPS), dtype=torch.float64)
    table, rollouts = rows(name, one)
    plain = replace(rollouts, scored_steps=None)
    each = replace(rollouts, step_weight=one.expand(4, -1), scored_steps=LONGEST * STEPS)
    expected, found = gradient(name, table, plain), gradient(name, table, each)
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-14)


def test_two_episodes_of_one_and_of_two_decisions_by_hand():
    """D = 10, two steps a decision, beta 2 nats: r in nats is D times the sum of all log-ratios,
    10 (.01 + .02 + .03 + .04) = 1 and 10 (.05 - .02) = .3; (1 - .3) - (3 - 1) / 2 = -.3."""
    log_prob = torch.tensor([[0.01, 0.02, 0.03, 0.04], [0.05, -0.02, 9.0, 9.0]])
    zeros = torch.zeros(2, 4)
    weight = torch.tensor([[0.5] * 4, [0.5, 0.5, 0.0, 0.0]])
    reward, group = torch.tensor([3.0, 1.0]), torch.zeros(2, dtype=torch.long)
    data = Rollouts(zeros, zeros, reward, group, weight, dimensions=10, scored_steps=2)
    loss, metrics = PRDP(beta=2.0, clip=None, unit="nats", aggregate="sum")(log_prob, data)
    assert float(loss) == pytest.approx(0.3**2, rel=1e-6) and metrics["prdp/pairs"] == 1
    # RTB's loss is a quarter of that: half of the mean over the four ordered pairs, two of them 0,
    # in squared means over T D = 20 numbers.
    loss, _ = RTB(beta=2.0, unit="nats")(log_prob, data)
    assert float(loss) * 20**2 == pytest.approx(0.3**2 / 4, rel=1e-6)
