"""What each client has of its own, and the rate limit by address."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch

from offline.errors import InputError
from robots.serving.per_client import copier, find_weights, noise
from robots.serving.rate_limit import RateLimit


class Wrapped:
    def __init__(self):
        self.inner, self.history = torch.nn.Linear(2, 3), []
        self.again = self  # a cycle


def test_each_client_has_a_copy_that_shares_the_weights():
    base = Wrapped()
    make = copier(base, lambda: pytest.fail("loaded again"))
    one, two = make(), make()
    one.history.append(1)
    assert two.history == [] and base.history == []
    assert len(find_weights(base)) == 2
    for mine, theirs in zip(find_weights(base), find_weights(one), strict=True):
        assert mine is theirs
    base.lock = threading.Lock()  # cannot be copied
    assert copier(base, lambda: "loaded again")() == "loaded again"


def test_noise_of_each_client():
    first = [torch.randn(3, generator=g) for g in itertools.islice(noise(0), 2)]
    again = [torch.randn(3, generator=g) for g in itertools.islice(noise(0), 2)]
    other = torch.randn(3, generator=next(noise(1)))
    torch.testing.assert_close(first, again)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other)


def test_rate_limit_by_hand():
    rates = RateLimit(2)
    rates.take("a", 0.0), rates.take("a", 0.0), rates.take("b", 0.0)
    with pytest.raises(InputError, match=r"wait 0\.5 s"):
        rates.take("a", 0.0)
    with pytest.raises(InputError, match=r"wait 0\.25 s"):
        rates.take("a", 0.25)
    rates.take("a", 0.5)
    with pytest.raises(InputError):
        rates.take("a", 0.5)


def test_what_is_taken_at_once_is_made_up_for_by_hand():
    rates = RateLimit(10, "samples")
    rates.take("a", 0.0, number=25)  # 15 more than a second's worth
    with pytest.raises(InputError, match=r"more than 10 samples per second; wait 1\.6 s"):
        rates.take("a", 0.0)
    rates.take("b", 0.0)
    with pytest.raises(InputError, match=r"wait 0\.1 s"):
        rates.take("a", 1.5, number=5)
    rates.take("a", 1.6, number=5)


def test_quiet_names_are_forgotten_and_debts_are_not():
    rates = RateLimit(10)
    rates.take("deep", 0.0, number=100_000)
    for number in range(3000):
        rates.take(str(number), number / 100)
    assert len(rates._left) < 1200
    with pytest.raises(InputError):
        rates.take("deep", 30.0)
