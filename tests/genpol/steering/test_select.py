"""Selection rules: closed-form frequencies, ties, infinities, NaN."""

from __future__ import annotations

import pytest
import torch
from fake_steering import seeded

from genpol.steering.select import argmax, keep_if_better, random_choice, softmax
from offline.errors import InputError

INF, NAN = float("inf"), float("nan")


def rows(*values: float, times: int = 1) -> torch.Tensor:
    return torch.tensor(values).repeat(times, 1)


def shares(rule, scores: torch.Tensor) -> torch.Tensor:
    chosen = rule(scores, seeded())
    return torch.bincount(chosen, minlength=scores.shape[1]) / len(scores)


def test_argmax_takes_the_first_of_the_best():
    assert argmax()(torch.tensor([[0.0, 2.0, 2.0], [-INF, -INF, -1.0]]), None).tolist() == [1, 2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_softmax_frequencies_match_the_closed_form(temperature):
    scores, n = rows(0.0, 1.0, -2.0, 0.5, times=20_000), 20_000
    expected = torch.softmax(scores[0] / temperature, -1)
    error = (expected * (1 - expected) / n).sqrt()
    assert ((shares(softmax(temperature), scores) - expected).abs() < 4 * error).all()


def test_softmax_standardized_does_not_depend_on_units():
    scores = rows(0.0, 1.0, -2.0, 0.5, times=20_000)
    same = [shares(softmax(1.0, standardize=True), scores * u + 7) for u in (0.01, 1.0, 300.0)]
    torch.testing.assert_close(same[0], same[1], atol=2e-4, rtol=0)
    torch.testing.assert_close(same[0], same[2], atol=2e-4, rtol=0)


def test_softmax_at_temperature_0_is_argmax():
    scores = torch.randn(50, 8, generator=seeded())
    assert torch.equal(softmax(0)(scores, seeded()), scores.argmax(-1))


def test_softmax_with_infinities():
    assert shares(softmax(1.0), rows(-INF, 0.0, -INF, times=100)).tolist() == [0, 1, 0]
    assert shares(softmax(1.0), rows(INF, 0.0, -5.0, times=100)).tolist() == [1, 0, 0]
    half = shares(softmax(1.0), rows(-INF, -INF, times=1000))
    assert half[0].item() == pytest.approx(0.5, abs=0.07)
    assert shares(softmax(1.0, standardize=True), rows(0.0, -INF, times=100)).tolist() == [1, 0]


def test_huge_values_do_not_overflow():
    assert shares(softmax(1e-3), rows(1e30, -1e30, times=50)).tolist() == [1, 0]


@pytest.mark.parametrize("rule", [argmax(), softmax(1.0), softmax(0), keep_if_better()])
def test_nan_is_an_error_that_names_it(rule):
    scores = torch.zeros(3, 4)
    scores[1, 2] = NAN
    with pytest.raises(InputError, match="candidate 2 of row 1"):
        rule(scores, seeded())


def test_keep_if_better_by_hand():
    scores = torch.tensor([[0.0, 0.4, 0.2], [0.0, 0.6, 0.2], [1.0, 0.0, 0.0], [-INF, -3.0, -2.0]])
    assert keep_if_better(0.5)(scores, None).tolist() == [0, 1, 0, 2]
    assert keep_if_better()(scores, None).tolist() == [1, 1, 0, 2]


def test_random_choice_is_uniform_whatever_the_scores():
    share = shares(random_choice(), rows(0.0, 100.0, -INF, NAN, times=20_000))
    assert ((share - 0.25).abs() < 0.013).all()


@pytest.mark.parametrize(
    "rule", [argmax(), softmax(1.0), softmax(1.0, standardize=True), random_choice()]
)
def test_one_candidate_is_chosen_without_drawing(rule):
    generator = seeded()
    before = generator.get_state()
    assert rule(torch.zeros(5, 1), generator).tolist() == [0] * 5
    assert torch.equal(generator.get_state(), before)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(InputError, match="temperature"):
        softmax(-1.0)
    with pytest.raises(InputError, match="temperature"):
        softmax(NAN)
    with pytest.raises(InputError, match="margin"):
        keep_if_better(-0.1)
