"""Rules that keep several of K chains: the best, and draws by the value's increment."""

from __future__ import annotations

import pytest
import torch

from genpol.steering.keep import best, resampled
from genpol.steering.select import softmax
from offline.errors import InputError

ZERO = torch.zeros(1, 4)


def chooser(seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed)]


def test_the_best_stay_in_their_order_and_the_first_of_equals():
    now = torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    rule, none = best(), torch.zeros(2, 4)
    assert rule(now, none, 2, []).tolist() == [[1, 3], [0, 1]]
    assert rule(now, none, 1, []).tolist() == [[1], [0]]
    assert rule(now, none, 3, []).tolist() == [[1, 2, 3], [0, 1, 2]]
    assert rule(now, now, 2, []).tolist() == [[1, 3], [0, 1]]  # whatever they were before


def test_equal_increments_keep_every_chain_once():
    now = torch.tensor([[1.0, 5.0, -2.0, 0.5]])
    for seed in range(20):
        kept = resampled(0.1)(now, now - 3, 4, chooser(seed))
        assert kept.tolist() == [[0, 1, 2, 3]]


def test_a_chain_goes_on_as_often_as_its_weight_says():
    now = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    weights = (now / 0.8).softmax(-1)[0]
    counts = torch.zeros(4)
    rule = resampled(0.8)
    for seed in range(500):
        kept = rule(now, ZERO, 4, chooser(seed))[0]
        own = torch.bincount(kept, minlength=4)
        assert ((own >= (4 * weights).floor()) & (own <= (4 * weights).ceil())).all()
        counts += own
    torch.testing.assert_close(counts / 2000, weights, rtol=0, atol=0.02)


def test_one_draw_has_the_odds_of_softmax():
    now, n = torch.tensor([[1.0, 0.0, 0.5]]), 1500
    one = torch.cat([resampled(0.5)(now, ZERO[:, :3], 1, chooser(i))[0] for i in range(n)])
    other = softmax(0.5)(now.expand(n, -1), torch.Generator().manual_seed(0))
    a, b = (torch.bincount(x, minlength=3) / n for x in (one, other))
    torch.testing.assert_close(a, b, rtol=0, atol=0.05)


def test_temperature_0_copies_the_largest_increment():
    now, before = torch.tensor([[5.0, 1.0]]), torch.tensor([[4.9, 0.0]])
    assert resampled(0.0)(now, before, 2, chooser()).tolist() == [[1, 1]]


@pytest.mark.parametrize("rule", [best(), resampled(0.5), resampled(0.0)])
def test_nan_is_refused(rule):
    now = torch.tensor([[1.0, float("nan"), 0.0, 2.0]])
    for count in (1, 2):
        with pytest.raises(InputError, match="candidate 1 of row 0 as NaN"):
            rule(now, ZERO, count, chooser())


def test_a_negative_temperature_is_refused():
    with pytest.raises(InputError, match="temperature of at least 0"):
        resampled(-1.0)
