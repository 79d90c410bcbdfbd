"""Candidates under a deadline: as many as fit by what batches were measured to cost."""

from __future__ import annotations

import time

import pytest
from fake_steering import Quadratic, Uniform, seeded, states

from genpol.steering.deadline import LatencyMeter, Pace
from genpol.steering.select import argmax
from genpol.steering.steered import Steered
from offline.errors import InputError


def decisions(pace: Pace, cost, count: int, rest: float = 0.0) -> list[tuple[int, int, float]]:
    """(K, calls, seconds) of decisions by a policy whose batch of n takes cost(n) seconds."""
    found = []
    for _ in range(count):
        have, calls, now = 0, 0, 0.0
        while size := pace.next_batch(have, now):
            now += cost(size)
            pace.learn_batch(size, cost(size))
            have, calls = have + size, calls + 1
        pace.learn_decision(have, rest, now + rest)
        found.append((have, calls, now + rest))
    return found


def test_a_sequential_policy_proposes_what_fits():
    found = decisions(Pace(0.1, 64), lambda n: 0.01 * n, 30, rest=0.005)
    assert all(seconds <= 0.1 for _, _, seconds in found)
    assert found[-1][0] == 8  # 16 would take 0.16 s


def test_a_batched_policy_is_soon_asked_once():
    found = decisions(Pace(0.1, 64), lambda n: 0.03, 30)
    assert all(seconds <= 0.1 for _, _, seconds in found)
    assert found[-1][:2] == (64, 1)


def test_too_slow_for_the_deadline_still_proposes_one():
    found = decisions(Pace(0.1, 64), lambda n: 1.0 * n, 10)
    assert found[-1][:2] == (1, 1)


def test_it_never_proposes_more_than_asked_for():
    for most in (1, 2, 3, 7, 33):
        assert decisions(Pace(10.0, most), lambda n: 1e-6, 20)[-1][0] == most


def test_a_policy_that_slows_down_gets_fewer():
    pace = Pace(0.1, 64)
    decisions(pace, lambda n: 0.02, 30)
    slow = decisions(pace, lambda n: 0.02 * n, 30)
    assert slow[-1][2] <= 0.1


def test_steering_meets_a_deadline_on_the_clock():
    class Slow(Uniform):
        def sample(self, obs, n, generator):
            time.sleep(0.004 * n)
            return super().sample(obs, n, generator)

    steered = Steered(Slow(), Quadratic(), 1000, argmax(), deadline=0.1, check=False)
    num = [steered.decide(states(2), seeded()).num_scored for _ in range(5)]
    assert all(4 <= k <= 16 for k in num)  # 32 take more than the deadline
    assert steered.sample(states(2), 3, seeded()).shape == (2, 3, 1, 1)


def test_enough_time_gives_all_candidates():
    steered = Steered(Uniform(), Quadratic(), 50, argmax(), deadline=5.0)
    decision = steered.decide(states(), seeded())
    assert decision.num_scored == decision.candidates.shape[1] == 50


def test_a_deadline_in_the_past_is_refused():
    with pytest.raises(InputError, match="deadline"):
        Steered(Uniform(), Quadratic(), 8, argmax(), deadline=0)


def test_percentiles_and_parts():
    meter = LatencyMeter()
    for i in range(101):
        meter.add({"propose": i / 1000, "score": 0.001})
    assert meter.percentile(50) == pytest.approx(0.051)
    assert meter.percentile(95) == pytest.approx(0.096)
    assert meter.mean_parts() == pytest.approx({"propose": 0.05, "score": 0.001})


def test_time_that_has_passed_before_is_counted():
    pace = Pace(0.1, 64)
    decisions(pace, lambda n: 0.001 * n, 20)
    assert pace.next_batch(0, 0.0) == 64
    assert pace.next_batch(0, 0.06) == 32  # 64 would take until 0.124
    assert pace.next_batch(0, 0.09) in (4, 8)
    assert pace.next_batch(0, 1.0) == 1

    class Slow(Uniform):
        def sample(self, obs, n, generator):
            time.sleep(0.001 * n)
            return super().sample(obs, n, generator)

    steered = Steered(Slow(), Quadratic(), 64, argmax(), deadline=0.1, check=False)
    for _ in range(6):
        steered.decide(states(), seeded())
    late = steered.decide(states(), seeded(), since=time.perf_counter() - 0.07)
    assert late.num_scored <= 32
    assert steered.sample(states(), 1, seeded(), since=0.0).shape == (1, 1, 1, 1)
