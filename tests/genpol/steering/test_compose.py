"""Weighted sums of critics: every combination of heads, each critic in its own units."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_steering import SPEC, Quadratic, Uniform, seeded, states

from genpol.steering.compose import Composed
from genpol.steering.select import argmax
from genpol.steering.steered import Steered
from offline.errors import InputError, SpecError
from offline.spec import ActionSpec

OTHER = replace(SPEC, scale="mean_std", mean=(0.2,), std=(0.4,))


def test_the_maximum_of_a_weighted_sum_by_hand():
    # -(a - 0)² w1 - (a - .8)² w2 is largest at .8 w2 / (w1 + w2)
    for weights, best in (((1.0, 1.0), 0.4), ((1.0, 3.0), 0.6), ((1.0, 0.0), 0.0)):
        both = Composed(
            [Quadratic(best=(0.0,)), Quadratic(OTHER, best=(0.8,))], weights, standardize=False
        )
        act = Steered(Uniform(), both, 500, argmax()).sample(states(20), 1, seeded())
        assert (act - best).abs().max() < 0.03


def test_heads_combine_and_the_minimum_is_the_sum_of_minima():
    first, second = Quadratic(best=(0.0, 0.4)), Quadratic(OTHER, best=(0.1, 0.2, 0.9))
    both = Composed([first, second], [2.0, 1.0], standardize=False)
    obs, act = states(3), Uniform().sample(states(3), 5, seeded())
    q = both(obs, act)
    assert q.shape == (6, 3, 5)
    raw = SPEC.unnormalize(act)
    expected = 2 * first(obs, act).amin(0) + second(obs, OTHER.normalize(raw)).amin(0)
    torch.testing.assert_close(q.amin(0), expected, atol=1e-5, rtol=0)


def test_standardized_weights_do_not_depend_on_a_critics_units():
    class Loud(Quadratic):
        def score(self, features, act):
            return 1000 * super().score(features, act) - 50

    obs, act = states(4), Uniform().sample(states(4), 16, seeded())
    quiet = Composed([Quadratic(best=(0.0,)), Quadratic(best=(0.8,))], [1, 1])(obs, act)
    loud = Composed([Quadratic(best=(0.0,)), Loud(best=(0.8,))], [1, 1])(obs, act)
    torch.testing.assert_close(quiet, loud, atol=1e-3, rtol=1e-3)


def test_a_single_candidate_and_a_flat_critic_give_finite_scores():
    class Flat(Quadratic):
        def score(self, features, act):
            return torch.zeros(2, *act.shape[:2])

    both = Composed([Quadratic(), Flat()], [1, 1])
    assert torch.isfinite(both(states(), torch.zeros(1, 1, 1, 1))).all()
    assert torch.isfinite(both(states(), torch.zeros(1, 4, 1, 1))).all()


def test_each_observation_is_encoded_once_by_each_critic():
    critics = [Quadratic(), Quadratic()]
    Steered(Uniform(), Composed(critics, [1, 1]), 8, argmax()).decide(states(2), seeded())
    assert [critic.encoded for critic in critics] == [1, 1]


def test_critics_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="one weight for each of 2"):
        Composed([Quadratic(), Quadratic()], [1.0])
    with pytest.raises(InputError, match="critic 1 scores chunks of H=2"):
        Composed([Quadratic(), Quadratic(SPEC.with_chunk(2))], [1, 1])
    with pytest.raises(SpecError, match="critic 1"):
        Composed([Quadratic(), Quadratic(ActionSpec.from_bounds([0.0], [10.0]))], [1, 1])
    with pytest.raises(InputError, match="finite weights"):
        Composed([Quadratic()], [float("nan")])
