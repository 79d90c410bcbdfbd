"""Intervals and tests against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from genpol.reports.stats import (
    iqm,
    iqm_interval,
    mcnemar,
    paired_difference,
    paired_outcomes,
    wilson,
)
from offline.errors import InputError


def test_wilson_by_hand():
    # n = 10, p = .8, z = 1.96: centre (.8 + .19207) / 1.38415, half sqrt(.016 + .0096036) * 1.96
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)


def test_wilson_at_the_ends():
    low, high = wilson(0, 50)
    assert low == 0.0 and high == pytest.approx(3.8415 / (50 + 3.8415), abs=1e-4)  # z² / (n + z²)
    low, high = wilson(50, 50)
    assert high == 1.0 and low == pytest.approx(50 / (50 + 3.8415), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(InputError, match="0 to 5"):
        wilson(6, 5)


def test_wilson_covers_what_it_promises():
    rng = np.random.default_rng(0)
    found = [wilson(int(k), 40) for k in rng.binomial(40, 0.7, size=2000)]
    covered = np.mean([low <= 0.7 <= high for low, high in found])
    assert 0.93 < covered < 0.975


def outcome(only_base: int, only_other: int, both: int = 3, neither: int = 2):
    base = [1] * only_base + [0] * only_other + [1] * both + [0] * neither
    other = [0] * only_base + [1] * only_other + [1] * both + [0] * neither
    return np.array(base, bool), np.array(other, bool)


def test_mcnemar_by_hand():
    # discordant 1 against 5: P(X <= 1 | 6, 1/2) = (1 + 6) / 64
    base, other = outcome(1, 5)
    assert mcnemar(base, other) == pytest.approx(14 / 64)
    assert mcnemar(base, other, "greater") == pytest.approx(7 / 64)
    assert mcnemar(base, other, "less") == pytest.approx(63 / 64)
    assert mcnemar(other, base, "less") == pytest.approx(7 / 64)


def test_mcnemar_of_equal_arms_is_one():
    base, _ = outcome(4, 4)
    assert mcnemar(base, base) == 1.0
    assert mcnemar(base, base, "greater") == 1.0
    assert mcnemar(*outcome(4, 4)) == 1.0


def test_mcnemar_agrees_with_scipy_on_many_pairs():
    from scipy.stats import binomtest

    base, other = outcome(400, 460)
    assert mcnemar(base, other) == pytest.approx(binomtest(400, 860).pvalue)


def test_paired_outcomes_count_every_episode():
    assert paired_outcomes(*outcome(1, 5, 3, 2)) == {
        "both": 3,
        "only_base": 1,
        "only_other": 5,
        "neither": 2,
    }
    with pytest.raises(InputError, match="same episodes"):
        paired_outcomes([True], [True, False])


def test_the_difference_is_paired():
    # strongly correlated arms: the paired interval is as narrow as that of the differences alone
    base, other = outcome(0, 10, 45, 45)
    difference, low, high = paired_difference(base, other, np.random.default_rng(0))
    assert difference == pytest.approx(0.10)
    deviation = np.sqrt(0.1 * 0.9 / 100)
    assert low == pytest.approx(0.1 - 1.96 * deviation, abs=0.01)
    assert high == pytest.approx(0.1 + 1.96 * deviation, abs=0.015)


def test_the_difference_of_identical_arms_is_zero_without_doubt():
    base, _ = outcome(2, 2)
    assert paired_difference(base, base, np.random.default_rng(0)) == (0.0, 0.0, 0.0)


def test_interquartile_mean_by_hand():
    assert iqm([0, 1, 2, 3, 4, 5, 6, 100]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert iqm([1, 2, 3]) == 2.0  # too few to cut
    assert iqm([1, 2, 3, 4, 90]) == 3.0


def test_interquartile_interval_contains_the_truth_and_shrinks():
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(10, 3)), rng.normal(size=(200, 3))
    _, low, high = iqm_interval(few, np.random.default_rng(1), resamples=2000)
    assert low < 0 < high
    _, low_many, high_many = iqm_interval(many, np.random.default_rng(1), resamples=500)
    assert high_many - low_many < (high - low) / 2
