"""An episode as a row: by hand, against plain autograd over whole episodes, and shared draws."""

from __future__ import annotations

import pytest
import torch
from toy_rounds import chains, envs, played, starts

from diffusion.chain import score_chain
from diffusion.objective import Rollouts, step_weights
from diffusion.objectives.ddpo import DDPO
from diffusion.objectives.grpo import GRPO
from diffusion.prdp import PRDP
from diffusion.scores import ChainScores, ratio_error
from diffusion.two_pass import log_probs, two_pass_backward
from genpol.rounds.play import play
from genpol.rounds.table import EpisodeScores, by_episode, episode_weights, shared_draws

PLACE = torch.tensor([[0, 2], [1, -1]])  # episodes of two decisions and of one


def test_the_table_of_two_episodes_by_hand():
    """Decisions 0 and 2 are the first episode's, with log-ratios of two steps each."""
    log_ratio = torch.tensor([[0.1, 0.2], [1.0, 2.0], [0.01, 0.02]])
    table = by_episode(log_ratio, PLACE)
    assert table.tolist() == [
        pytest.approx([0.1, 0.2, 0.01, 0.02]),
        pytest.approx([1.0, 2.0, 0.0, 0.0]),
    ]
    weight = episode_weights(PLACE, torch.tensor([0.25, 0.75]))
    assert weight.tolist() == [[0.25, 0.75, 0.25, 0.75], [0.25, 0.75, 0, 0]]
    # Uniform weights 1/2 times T D = 2 * 10: sums over decisions and steps, in nats.
    sums = (table * episode_weights(PLACE, torch.full((2,), 0.5))).sum(1) * 2 * 10
    assert sums.tolist() == pytest.approx([3.3, 30.0])
    three = by_episode(torch.stack([log_ratio, -log_ratio], -1), PLACE)
    assert three.shape == (2, 4, 2) and torch.equal(three[..., 1], -table)


def round_of(kind: str):
    """Chains of a policy, a round of them, and its scores and rollouts."""
    made, lanes = chains(kind), envs(3)
    found = play(lanes, made, starts(2, 3))
    reference = chains(kind)
    with torch.no_grad():
        for weight in reference.policy.parameters():
            weight.add_(0.02 * torch.ones_like(weight))
        ref = score_chain(reference.predict, reference.process, found.chain, found.cond)
    chain, place = found.chain, found.place
    each = torch.arange(chain.x.shape[1])
    single = ChainScores(made.predict, reference.predict, made.process, chain, found.cond, each)
    weight = step_weights(made.process, "uniform")
    rollouts = Rollouts(
        by_episode(chain.log_prob, place),
        by_episode(ref, place),
        torch.tensor([e.returned for e in found.episodes]),
        torch.arange(2).repeat_interleave(3),
        episode_weights(place, weight),
        chain.dimensions,
        scored_steps=int((weight > 0).sum()),
    )
    return made, found, EpisodeScores(single, place, made.process.num_steps), rollouts, reference


OBJECTIVES = {
    "prdp": lambda: PRDP(beta=0.5, clip=0.02, unit="nats", aggregate="sum"),
    "ddpo": lambda: DDPO(clip=0.02),
    "grpo": lambda: GRPO(clip=0.02),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_the_gradient_is_that_of_one_graph_over_whole_episodes(kind, name):
    made, found, scores, rollouts, _ = round_of(kind)
    objective = OBJECTIVES[name]()
    if hasattr(objective, "prepare"):
        rollouts = objective.prepare(rollouts, ["a"] * 3 + ["b"] * 3)
    weights = list(made.trainable().values())
    with torch.no_grad():  # so that the clip acts
        for weight in weights:
            weight.mul_(1.02)
    two_pass_backward(scores.score, objective, rollouts, 5, ahead=scores.ahead)
    in_parts = [weight.grad.clone() for weight in weights]
    # Episode by episode, decision by decision, step by step, as the formulas read.
    process, chain, longest = made.process, found.chain, found.place.shape[1]
    rows = []
    for episode in found.episodes:
        cells = []
        for decision in episode.decisions:
            cond = {key: values[decision : decision + 1] for key, values in found.cond.items()}
            for t in range(process.num_steps):
                at = torch.tensor([t])
                x_t, x_prev = chain.x[t, decision][None], chain.x[t + 1, decision][None]
                mean = process.mean(made.predict(x_t, process.timesteps_at(at), cond), x_t, at)
                cells.append(process.log_prob(x_prev, mean, at)[0])
        gone = (longest - len(episode.decisions)) * process.num_steps
        rows.append(torch.stack([*cells, *[torch.zeros(())] * gone]))
    loss, _ = objective(torch.stack(rows), rollouts)
    whole = torch.autograd.grad(loss, weights)
    size = max(float(g.abs().max()) for g in whole)
    assert size > 0
    for mine, theirs in zip(in_parts, whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * size)


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_ratios_are_one_before_any_step(kind):
    _, _, scores, rollouts, _ = round_of(kind)
    assert ratio_error(scores, rollouts, 7) < 1e-5
    again = log_probs(scores.score, rollouts, 7)
    used = rollouts.step_weight > 0
    stored = scores.at_rollout(rollouts)
    torch.testing.assert_close(again[used], stored[used], rtol=0, atol=1e-5)


def test_draws_are_shared_by_the_decisions_of_a_layout_that_have_the_same_number():
    found = played("diffusion", 2, 3)
    process, group = chains("diffusion").forward, torch.arange(2).repeat_interleave(3)
    made = shared_draws(process, found.place, group, 4, (1,), seed=0, round_=1)
    assert made.at.shape == (found.steps, 4) and made.noise.shape == (found.steps, 4, 1)
    first, second = found.place[:, 0], found.place[:, 1]
    for rows in (first[:3], first[3:], second[:3][second[:3] >= 0]):
        assert (made.noise[rows] == made.noise[rows[0]]).all()
        assert (made.at[rows] == made.at[rows[0]]).all()
    assert not torch.equal(made.noise[first[0]], made.noise[first[3]])  # another layout
    both = second >= 0
    assert not torch.equal(made.noise[first[both][0]], made.noise[second[both][0]])
    later = shared_draws(process, found.place, group, 4, (1,), seed=0, round_=2)
    assert not torch.equal(later.noise, made.noise)
