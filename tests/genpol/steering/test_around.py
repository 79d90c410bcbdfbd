"""Candidates around one proposal: bounded, alike for all actions of a chunk, better ones win."""

from __future__ import annotations

import warnings

import pytest
import torch
from fake_steering import Quadratic, Uniform

from genpol.deployed.choice import Choice
from genpol.steering.around import Around, candidates_of
from genpol.steering.select import argmax
from genpol.steering.session import Arms
from genpol.steering.steered import Steered
from offline.errors import InputError
from offline.spec import ActionSpec
from robots.serving.proxy import chosen_answer

OBS = {"state": torch.zeros(2, 3)}
# What the critic learnt from moved by .5 and 2 about 0; the policy's units are others.
CRITIC = ActionSpec.from_bounds([-1.0, -10.0, 0.0], [1.0, 10.0, 1.0], gripper=2)
CRITIC = ActionSpec.from_dict({**CRITIC.to_dict(), "std": [0.5, 2.0, 0.4]})
POLICY = ActionSpec.from_bounds([-2.0, -20.0, 0.0], [2.0, 20.0, 1.0], gripper=2)


class Same(Uniform):
    """The same chunk, whatever the seed."""

    def sample(self, obs, n, generator):
        self.calls.append(n)
        return torch.full((len(obs["state"]), n, self.spec.chunk, self.spec.dim), 0.1)


def test_moves_are_bounded_alike_in_a_chunk_and_leave_the_gripper():
    around = Around(POLICY, CRITIC, 0.2, 500)
    act = torch.zeros(2, 3, 4, 3)
    found = around(None, act, torch.Generator().manual_seed(0))
    assert found.act.shape == (2, 1500, 4, 3) and found.log_prob.shape == (2, 1500)
    moved = POLICY.unnormalize(found.act) - POLICY.unnormalize(act[:, :1])
    assert moved.std(2).max() < 1e-6  # over the chunk
    most = moved.abs().amax((0, 1, 2))
    assert most.tolist() == pytest.approx([0.1, 0.4, 0.0], rel=0.01)  # .2 of .5 and of 2
    assert moved[..., :2].mean((0, 1, 2)).abs().max() < 0.02
    assert found.log_prob[0, 0] == pytest.approx(3 * torch.tensor(0.5).log().item())
    again = around(None, act, torch.Generator().manual_seed(0))
    assert torch.equal(found.act, again.act)


def test_a_deterministic_policy_is_asked_once_and_a_better_action_is_found():
    policy, value = Same(), Quadratic()  # it proposes .1, the best is .3
    count, edit = candidates_of(policy.spec, value.spec, 64, 0.5)
    steered = Steered(policy, value, count, argmax(), edit=edit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "all proposals are identical"
        for seed in range(4):
            decision = steered.decide(OBS, torch.Generator().manual_seed(seed))
    assert policy.calls == [1] * 4 and decision.num_scored == 64 and decision.num_base == 1
    assert (decision.candidates[:, 0] == pytest.approx(0.1)) and (decision.spread > 0.1).all()
    assert decision.action[:, 0, 0].tolist() == pytest.approx([0.3, 0.3], abs=0.05)


def test_identical_proposals_are_said_with_what_helps():
    steered = Steered(Same(), Quadratic(), 8, argmax())
    with pytest.warns(UserWarning, match=r"all 8 proposals are identical: .*--candidate-noise 0.1"):
        for _ in range(3):
            steered.decide(OBS, None)


def test_arms_take_their_candidates_around_one():
    arms = Arms(Same(), Quadratic(), argmax(), num_candidates=8, candidate_noise=0.3)
    for arm in ("steered", "random"):
        made = arms.make(arm)
        assert made.num_candidates == 1 and made.decide(OBS, None).num_scored == 8
    assert arms.make("base").sample(OBS, 1, None).shape[1] == 1
    assert candidates_of(POLICY, CRITIC, 8, 0.0) == (8, None)
    assert candidates_of(POLICY, CRITIC, 1, 0.3) == (1, None)
    with pytest.raises(InputError, match="noise above 0"):
        Around(POLICY, CRITIC, float("nan"), 3)


def test_a_served_choice_sends_the_answer_that_was_moved():
    choice = Choice(Quadratic(), {"state": (3,)})
    steered = choice.steer(Same(), 32, argmax(), noise=0.5)
    decision = steered.decide({"state": torch.zeros(1, 3)}, torch.Generator().manual_seed(1))
    answer = chosen_answer([{"actions": [[0.1]], "more": 1}], decision, steered.spec)
    assert answer["more"] == 1 and answer["actions"].tolist() == [pytest.approx([0.3], abs=0.05)]
    # without a value nothing says which move is better, so the policy's own chunks are proposed
    assert Choice().steer(Same(), 4, argmax(), noise=0.5).num_candidates == 4
