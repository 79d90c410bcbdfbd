"""Who holds which rows: every rank equally many, and as many passes for any set of them."""

from __future__ import annotations

import pytest
import torch

from diffusion.errors import InputError
from diffusion.judging import Judges, parse_ranks
from diffusion.ranks import Ranks, Share, whole


class Rank(Ranks):
    """One of several, without the others: what `all_gather` returns is set by the test."""

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count
        self.everyone: torch.Tensor | None = None

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        assert self.everyone is not None
        return self.everyone


def shares(rows: int, count: int, each: int = 1) -> list[Share]:
    return [Rank(i, count).share(rows, each) for i in range(count)]


def gathered(some: list[Share], values: list[torch.Tensor]) -> list[torch.Tensor]:
    for share in some:
        share.ranks.everyone = torch.stack(values)
    return [share.gather(one) for share, one in zip(some, values, strict=True)]


SIZES = [(15, 2, 1), (5, 4, 1), (3, 5, 1), (1, 3, 1), (16, 4, 1), (6, 4, 2), (10, 3, 2)]


@pytest.mark.parametrize(("rows", "count", "each"), SIZES)
def test_every_row_has_one_owner_and_every_rank_holds_equally_many(rows, count, each):
    some = shares(rows, count, each)
    held = {len(share.held) for share in some}
    assert held == {-(-(rows // each) // count) * each}
    assert sorted(torch.cat([share.mine for share in some]).tolist()) == list(range(rows))
    for share in some:
        own = share.mine
        assert torch.equal(share.held[share.place[own]], own)
        assert share.held.min() >= 0 and share.held.max() < rows
        assert torch.equal(own // each * each, share.held[share.place[own]] // each * each)
    table = torch.randn(rows, 3)
    for found in gathered(some, [share.spread(table) for share in some]):
        assert torch.equal(found, table)


@pytest.mark.parametrize(("rows", "count", "each"), SIZES)
def test_rows_that_are_kept_may_all_be_one_ranks(rows, count, each):
    keep = torch.arange(min(rows, 3))
    table = torch.randn(rows)
    both = [share.kept(keep) for share in shares(rows, count, each)]
    some = [share for share, _ in both]
    assert len({len(share.held) for share in some}) == 1
    parts = [
        share.spread(table)[stay]
        for share, (_, stay) in zip(shares(rows, count, each), both, strict=True)
    ]
    for found in gathered(some, parts):
        assert torch.equal(found, table[keep])


@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_every_rank_makes_as_many_passes_and_padding_counts_for_nothing(size):
    rows = torch.tensor([0, 0, 0, 1, 4, 4, 2, 0])  # items of 5 rows, most of them of one rank
    passes = [list(share.items(rows).passes(size)) for share in shares(5, 3)]
    assert len({len(one) for one in passes}) == 1
    seen = [int(i) for one in passes for some in one if not some.padding for i in some.items]
    assert sorted(seen) == list(range(len(rows)))
    for share, one in zip(shares(5, 3), passes, strict=True):
        for some in one:
            assert 0 < len(some.held) <= size and some.held.max() < len(share.held)
            if not some.padding:
                assert torch.equal(share.held[some.held], rows[some.items])


def test_one_process_holds_all_rows_in_order_and_sends_nothing():
    share, values = whole(4), torch.randn(4, 2)
    assert share.own(values) is values
    assert torch.equal(share.gather(values), values) and torch.equal(share.first(values, 1), values)
    passes = [some.items.tolist() for some in share.passes(3)]
    assert passes == [[0, 1, 2], [3]]


def test_whole_groups_go_to_the_processes_that_have_rewards():
    share, group = Rank(0, 3).share(6), torch.tensor([0, 0, 1, 1, 2, 2])
    where = Judges(share.ranks, (0, 2))._where(share, group, True)
    assert where.tolist() == [0, 0, 2, 2, 2, 2]
    assert Judges(share.ranks, (0, 1, 2))._where(share, group, False) is share.owner
    single = Judges(share.ranks, (1,))._where(share, torch.arange(6), False)
    assert single.tolist() == [1] * 6


@pytest.mark.parametrize("text", ["", "a", "0,,1", "-1", "1.5", "3"])
def test_reward_ranks_that_are_not_there_are_one_line(text):
    with pytest.raises(InputError, match="--reward-ranks"):
        parse_ranks(text, 3)
    assert parse_ranks(None, 3) == (0, 1, 2) and parse_ranks("2, 0", 3) == (0, 2)
