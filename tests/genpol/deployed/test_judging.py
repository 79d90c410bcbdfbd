"""A newer value is compared with the present one on episodes that neither has learnt from."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from recorded_episodes import RecordedList, recorded
from toy_data import episode, spec

from genpol.deployed.judging import NEWEST, Verdict, episode_scores, held_out, judge
from offline.critics.value import ValueFunction
from offline.data.recorded_rows import LEARNT


class Linear(ValueFunction):
    """Q = sign * state, which counts from 0 in failures and from 50 in successes."""

    def __init__(self, sign, **meta):
        super().__init__(spec(chunk=2), {"state": (1,)}, hidden=(4,), meta=meta)
        self.sign = sign

    def forward(self, obs, act):
        return self.sign * obs["state"][None, :, :1].expand(2, -1, act.shape[1])


def recording(outcomes, **meta):
    made = []
    for i, success in enumerate(outcomes):
        one, decisions = recorded(episode(6, success=success, seed=i), 2, seed=i)
        one.obs["state"] += 50.0 * (success is True) + 0.1 * i
        made.append((dataclasses.replace(one, meta={"id": f"e{i}", **meta}), decisions))
    return RecordedList([one for one, _ in made], [d for _, d in made], spec())


def test_the_one_that_tells_success_from_failure_wins():
    episodes = recording([True, False] * 4)
    verdict = judge(Linear(1), Linear(-1), episodes)
    assert (verdict.newer, verdict.present, verdict.episodes) == (1.0, 0.0, 8)
    assert not verdict.worse and verdict.error == 0
    verdict = judge(Linear(-1), Linear(1), episodes)
    assert verdict.worse and "AUC 0.000, before 1.000, on 8 held-out" in str(verdict)
    assert not judge(Linear(1), Linear(1), episodes).worse


def test_a_difference_within_the_error_is_no_reason():
    assert not Verdict(10, newer=0.60, present=0.65, error=0.06).worse
    assert Verdict(10, newer=0.60, present=0.65, error=0.04).worse
    assert not Verdict(10, newer=0.60, present=0.65, error=math.nan).worse


def test_what_a_value_has_learnt_from_says_nothing():
    episodes = recording([True, False, True, False, True, False])
    newer, present = Linear(-1, **{LEARNT: ["e0", "e1"]}), Linear(1, **{LEARNT: ["e2"]})
    assert held_out(episodes, newer, present) == [3, 4, 5]
    assert judge(newer, present, episodes).episodes == 3
    newer.meta[LEARNT] = [f"e{i}" for i in range(4)]
    assert judge(newer, present, episodes).worse  # e4 and e5 tell
    newer.meta[LEARNT] = [f"e{i}" for i in range(5)]
    verdict = judge(newer, present, episodes)
    assert verdict.episodes == 1 and not verdict.worse and "do not tell" in str(verdict)


def test_only_the_newest_are_looked_at():
    episodes = recording([True, False])
    many = RecordedList([episodes[0]] * (NEWEST + 5), [episodes.made[0]] * (NEWEST + 5), spec())
    assert held_out(many, Linear(1)) == list(range(5, NEWEST + 5))


@pytest.mark.parametrize("success", [None, True])
def test_unknown_outcomes_and_takeovers_do_not_count(success):
    by_hand = [False] * 4 + [True] * 2
    (one,) = recording([success], intervention=by_hand)
    data = RecordedList([one], [None], spec())
    found = episode_scores(Linear(1), data, 0, None)
    if success is None:
        assert found is None
    else:  # what the human did succeeded; what the policy did before is not known to
        assert len(found[0]) == 1 and found[1] is True


def test_it_ends_when_it_is_told_to():
    assert judge(Linear(1), Linear(1), recording([True, False]), stop=lambda: True).episodes == 0
    assert np.isnan(judge(Linear(1), Linear(1), recording([True, True])).newer)
    assert torch.is_grad_enabled()
