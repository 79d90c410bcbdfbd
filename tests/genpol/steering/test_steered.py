"""Steering a uniform proposer by Q = -(a - .3)²: the pick, what is executed, what is asked."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from fake_steering import (
    BEST,
    SPEC,
    Constant,
    Quadratic,
    Uniform,
    seeded,
    states,
)

from genpol.steering.select import argmax, keep_if_better, softmax
from genpol.steering.steered import Edits, Steered
from offline.errors import InputError, SpecError
from offline.spec import ActionSpec
from offline.types import Policy

OTHER = replace(SPEC, scale="mean_std", mean=(0.2,), std=(0.4,), p01=(-0.8,), p99=(0.9,))
WIDER = ActionSpec.from_bounds([-1.2], [1.4])


def test_it_is_a_policy():
    steered = Steered(Uniform(), Quadratic(), 8, argmax())
    assert isinstance(steered, Policy)
    assert steered.sample(states(3), 2, seeded()).shape == (3, 2, 1, 1)


def test_argmax_of_32_gets_close_and_one_does_not():
    steered = Steered(Uniform(), Quadratic(), 32, argmax())
    act = steered.sample(states(500), 1, seeded())
    # the nearest of K uniform points is about 1 / (K + 1) away; one point, 0.545 on average
    assert (act - BEST).abs().mean() == pytest.approx(1 / 33, rel=0.15)
    one = Steered(Uniform(), Quadratic(), 1, argmax()).sample(states(500), 1, seeded())
    assert (one - BEST).abs().mean() == pytest.approx((1.3**2 + 0.7**2) / 4, rel=0.1)


def test_argmax_picks_the_exact_best():
    decision = Steered(Uniform(), Quadratic(), 16, argmax()).decide(states(40), seeded())
    distance = (decision.candidates - BEST).abs()[..., 0, 0]
    assert torch.equal(decision.chosen, distance.argmin(1))
    rows = torch.arange(40)
    assert torch.equal(decision.action, decision.candidates[rows, decision.chosen])
    torch.testing.assert_close(decision.scores, -distance.square())


def test_one_candidate_is_the_base_policy_to_the_bit_and_in_its_stream():
    base, steered = Uniform(), Steered(Uniform(), Quadratic(), 1, softmax(1.0))
    mine, theirs = seeded(), seeded()
    for _ in range(3):
        assert torch.equal(
            steered.sample(states(4), 1, mine), base.sample(states(4), 1, theirs).clamp(-1, 1)
        )


def test_the_first_candidate_is_the_plain_sample():
    decision = Steered(Uniform(), Quadratic(), 8, keep_if_better(1e9)).decide(states(4), seeded())
    assert decision.chosen.tolist() == [0] * 4
    assert torch.equal(decision.action, decision.candidates[:, 0])


@pytest.mark.parametrize("policy", [SPEC, OTHER, WIDER, replace(SPEC, scale="p01_p99")])
@pytest.mark.parametrize("critic", [SPEC, OTHER, replace(SPEC, mask=(False,)), WIDER])
def test_what_is_executed_is_what_was_scored(policy, critic):
    score = Quadratic(critic)
    steered = Steered(Uniform(policy), score, 16, argmax())
    decision = steered.decide(states(20), seeded())
    executed = policy.clip(policy.unnormalize(decision.action))  # as the episode runner does
    seen = score.seen[0][torch.arange(20), decision.chosen]
    torch.testing.assert_close(executed, seen, atol=1e-5, rtol=0)
    assert (executed - BEST).abs().mean() < 0.12


def test_proposals_beyond_the_bounds_are_scored_as_the_environment_clips_them():
    class Bold(Uniform):
        def sample(self, obs, n, generator):
            return 1.4 * super().sample(obs, n, generator)

    score = Quadratic(best=(1.3, 1.3))
    decision = Steered(Bold(), score, 32, argmax()).decide(states(10), seeded())
    assert score.seen[0].abs().max() <= 1
    assert decision.action.max() == 1.0
    executed = SPEC.clip(SPEC.unnormalize(decision.action))
    assert torch.equal(executed, score.seen[0][torch.arange(10), decision.chosen])


def test_a_longer_chunk_is_cut_to_what_the_critic_scores():
    score = Quadratic(SPEC.with_chunk(2))
    steered = Steered(Uniform(chunk=5), score, 8, argmax())
    assert steered.spec.chunk == 2
    decision = steered.decide(states(3), seeded())
    assert decision.action.shape == (3, 2, 1) and score.seen[0].shape == (3, 8, 2, 1)


def test_the_observation_is_encoded_once_and_scored_in_one_call():
    base, score = Uniform(), Quadratic()
    steered = Steered(base, score, 32, softmax(1.0))
    for decisions in (1, 2, 3):
        steered.decide(states(5), seeded())
        assert score.encoded == len(score.seen) == len(base.calls) == decisions
    steered.sample(states(5), 4, seeded())
    assert score.encoded == 4 and base.calls[-1] == 128


def test_n_picks_each_have_candidates_of_their_own():
    steered = Steered(Uniform(), Quadratic(), 4, argmax())
    picks = steered.sample(states(200), 3, seeded())
    assert picks.shape == (200, 3, 1, 1)
    assert (picks[:, 0] != picks[:, 1]).all() and (picks[:, 1] != picks[:, 2]).all()
    # a pick of 4 is as good in a batch of picks as alone
    alone = Steered(Uniform(), Quadratic(), 4, argmax()).sample(states(600), 1, seeded(1))
    assert (picks - BEST).abs().mean() == pytest.approx(
        float((alone - BEST).abs().mean()), rel=0.15
    )


def test_softmax_prefers_but_does_not_insist():
    q = Quadratic()
    means = [
        float(Steered(Uniform(), q, 16, softmax(t)).decide(states(800), seeded()).scores.mean())
        for t in (0.0, 1.0)
    ]
    assert means[0] == pytest.approx(means[1])  # the same proposals
    value = {}
    for t in (0.0, 0.1, 100.0):
        act = Steered(Uniform(), q, 16, softmax(t)).sample(states(800), 1, seeded())
        value[t] = -float((act - BEST).square().mean())
    assert value[0.0] > value[0.1] > value[100.0]
    assert value[100.0] == pytest.approx(-(1 / 3 + BEST**2), rel=0.1)  # -E (a - .3)²


def test_the_ensembles_minimum_is_what_selects():
    split = Quadratic(best=(-0.5, 0.9))
    act = Steered(Uniform(), split, 200, argmax()).sample(states(30), 1, seeded())
    assert (act - 0.2).abs().max() < 0.1  # max_a min_e: half way
    leaning = Quadratic(best=(-0.5, 0.9, 0.9))
    act = Steered(Uniform(), leaning, 200, argmax(), ensemble="mean").sample(
        states(30), 1, seeded()
    )
    assert (act - 1.3 / 3).abs().max() < 0.1


def test_the_gate_gives_doubtful_rows_back_to_the_base_policy():
    class Doubtful(Quadratic):
        """Heads agree in row 0 and contradict each other in row 1."""

        def score(self, features, act):
            q = super().score(features, act)
            a = act[:, :, 0, 0]
            return q + torch.stack([5 * a, -5 * a]) * features[:, :1]

    obs = {"state": torch.tensor([[0.0], [1.0]])}
    free = Steered(Uniform(), Doubtful(), 16, softmax(1e9)).decide(obs, seeded(1))
    assert free.disagreement[0] < 1e-6 < free.disagreement[1]
    advantage = 5 * (free.candidates[1, free.chosen[1]] - free.candidates[1].mean(0)).item()
    assert free.disagreement[1].item() == pytest.approx(abs(advantage), rel=1e-4)
    gated = Steered(Uniform(), Doubtful(), 16, softmax(1e9), gate=0.01).decide(obs, seeded(1))
    assert gated.fell_back.tolist() == [False, True] and free.chosen[1] != 0
    assert gated.chosen.tolist() == [int(free.chosen[0]), 0]
    assert torch.equal(gated.action[1], gated.candidates[1, 0])


def test_edited_candidates_join_the_others():
    def halve(features, act, generator):
        assert torch.equal(features, states(3)["state"])
        return Edits(act / 2, act.flatten(2).sum(-1))

    base = Uniform()
    steered = Steered(base, Quadratic(), 4, argmax(), edit=halve)
    decision = steered.decide(states(3), seeded())
    assert decision.num_scored == 8
    proposals = decision.candidates[:, : decision.num_base]
    assert decision.num_base == 4 and torch.equal(decision.candidates[:, 4:], proposals / 2)
    assert torch.equal(decision.log_prob, proposals.flatten(2).sum(-1))
    assert torch.equal(decision.value, decision.scores.amax(1))
    picks = steered.sample(states(3), 2, seeded())
    assert picks.shape == (3, 2, 1, 1) and base.calls[-1] == 8
    twice = steered.choose(states(3), base.sample(states(3), 8, seeded()), seeded(), picks=2)
    assert twice.log_prob.shape == (6, 4) and twice.num_base == 4
    assert torch.equal(twice.log_prob, twice.candidates[:, :4].flatten(2).sum(-1))


def test_choosing_among_given_proposals_asks_the_base_policy_nothing():
    base = Uniform()
    steered = Steered(base, Quadratic(), 4, argmax())
    given = torch.tensor([[-0.9], [0.2], [0.8]]).view(1, 3, 1, 1)
    decision = steered.choose(states(), given, seeded())
    assert base.calls == [] and decision.chosen.tolist() == [1] and decision.num_base == 3
    assert torch.equal(decision.action, given[:, 1]) and decision.log_prob is None
    assert steered.metrics()["steer/candidates"] == 0  # what nobody executes is not counted


def test_it_tells_the_base_policy_what_happens():
    base = Uniform()
    steered = Steered(base, Quadratic(), 4, argmax())
    act = torch.zeros(2, 1, 1)
    steered.reset()
    steered.commit(act)
    steered.keep(torch.tensor([1]))
    assert base.told[0] == "reset" and base.told[1] is act and base.told[2] == [1]


def test_statistics_of_another_dataset_are_refused():
    with pytest.raises(SpecError, match="dimension 0"):
        Steered(Uniform(), Quadratic(ActionSpec.from_bounds([0.0], [10.0])), 4, argmax())
    with pytest.raises(SpecError, match="H=1.*H=4"):
        Steered(Uniform(), Quadratic(SPEC.with_chunk(4)), 4, argmax())

    class Wrong(Uniform):
        """Normalised by a standard deviation, declared as bounds."""

        def sample(self, obs, n, generator):
            return 6 * super().sample(obs, n, generator)

    with pytest.raises(SpecError, match="dimension 0.*un-normalised"):
        Steered(Wrong(), Quadratic(), 16, argmax()).decide(states(), seeded())
    Steered(Wrong(), Quadratic(), 16, argmax(), check=False).decide(states(), seeded())


def test_one_state_where_all_proposals_lie_outside_is_clipped_not_refused():
    class Far(Uniform):
        def sample(self, obs, n, generator):
            return torch.full_like(super().sample(obs, n, generator), 3.0)

    steered = Steered(Uniform(), Quadratic(), 4, argmax())
    for _ in range(3):
        steered.decide(states(20), seeded())
    steered.base = Far()
    assert float(steered.decide(states(1), seeded()).action) == 1.0
    with pytest.raises(SpecError, match="dimension 0.*3.*un-normalised"):
        steered.decide(states(60), seeded())


def test_gaussian_tails_are_no_reason_to_refuse():
    class Gaussian(Uniform):
        def sample(self, obs, n, generator):
            return 0.6 * torch.randn(len(obs["state"]), n, 1, 1, generator=generator)

    decision = Steered(Gaussian(), Quadratic(), 64, argmax()).decide(states(100), seeded())
    assert decision.candidates.abs().max() == 1


def test_what_a_policy_returns_is_checked():
    base = Uniform()
    base.sample = lambda obs, n, generator: torch.zeros(1, 1, 1, 1)
    with pytest.raises(InputError, match=r"n=4.*\(1, 1, 1, 1\)"):
        Steered(base, Quadratic(), 4, argmax()).decide(states(), seeded())
    with pytest.raises(InputError, match="at least 1 candidate"):
        Steered(base, Quadratic(), 0, argmax())


def test_the_chosen_action_can_be_trained_on():
    # tensors made in inference mode could not be
    act = Steered(Uniform(), Quadratic(), 4, argmax()).sample(states(), 1, seeded())
    weight = torch.ones(1, requires_grad=True)
    (weight * act).sum().backward()
    assert weight.grad is not None


def test_metrics_are_means_over_decisions():
    steered = Steered(Uniform(), Quadratic(), 64, argmax())
    for seed in range(4):
        steered.decide(states(50), seeded(seed))
    metrics = steered.metrics()
    assert metrics["steer/spread"] == pytest.approx(1.0, abs=0.03)  # uniform, as the "data" is
    assert metrics["steer/candidates"] == 64 and metrics["steer/fell_back"] == 0
    assert 0 < metrics["steer/latency_p50_ms"] <= metrics["steer/latency_p95_ms"]


@pytest.mark.parametrize(
    ("per_call", "cause"), [(False, "deterministic head"), (True, "ignores sample_shape")]
)
def test_identical_proposals_are_reported_once_with_the_cause(per_call, cause):
    steered = Steered(Constant(per_call), Quadratic(), 32, argmax())
    generator = seeded()
    with pytest.warns(UserWarning, match=f"all 32 proposals are identical.*{cause}"):
        for _ in range(3):
            steered.decide(states(), generator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steered.decide(states(), generator)
    assert cause in steered.diversity.verdict


def test_low_noise_proposals_are_reported_and_varied_ones_are_not():
    class Quiet(Uniform):
        def sample(self, obs, n, generator):
            return 0.3 + 0.01 * super().sample(obs, n, generator)

    with pytest.warns(UserWarning, match="nearly alike.*low_noise_eval"):
        steered = Steered(Quiet(), Quadratic(), 8, argmax())
        for _ in range(20):
            steered.decide(states(), seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steered = Steered(Uniform(), Quadratic(), 8, argmax())
        for _ in range(25):
            steered.decide(states(), seeded())
    assert steered.diversity.verdict is None
