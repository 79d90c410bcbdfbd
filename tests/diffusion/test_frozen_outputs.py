"""Frozen outputs are those of one pass each, under few switches of weights, and never stale."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from tiny_tuners import tiny_tuner

import diffusion.frozen_outputs
from diffusion.fitting import Fitting
from diffusion.frozen_outputs import AHEAD, FrozenOutputs

ROWS, COLUMNS = 30, 20
PAIRS = torch.ones(ROWS, COLUMNS).nonzero(as_tuple=True)


class Recorded:
    def __init__(self) -> None:
        self.switches, self.sizes, self.inside, self.weight = 0, list[int](), False, 1.0
        self.outputs = FrozenOutputs(self.make, self.weights)

    @contextmanager
    def weights(self):
        assert not self.inside
        self.switches, self.inside = self.switches + 1, True
        yield
        self.inside = False

    def make(self, rows, columns):
        assert self.inside and not torch.is_grad_enabled()
        self.sizes.append(len(rows))
        return self.weight * (100.0 * rows + columns)[:, None]


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_one_switch_serves_many_micro_batches(size):
    seen = Recorded()
    rows, columns = PAIRS
    with seen.outputs.coming(rows, columns, Fitting(size)):
        for r, c in zip(rows.split(size), columns.split(size), strict=True):
            assert torch.equal(seen.outputs(r, c), (100.0 * r + c)[:, None])
    assert seen.sizes == [len(r) for r in rows.split(size)]  # none twice, none of another size
    blocks = -(-len(rows) // (max(1, AHEAD // size) * size))
    assert seen.switches == blocks


def test_a_walk_may_fail_and_go_on_or_begin_again():
    seen, batch = Recorded(), Fitting(8)
    rows, columns = PAIRS

    def right(first: int, last: int) -> bool:
        found = seen.outputs(rows[first:last], columns[first:last])[:, 0]
        return torch.equal(found, 100.0 * rows[first:last] + columns[first:last])

    with seen.outputs.coming(rows, columns, batch):
        assert right(0, 8) and right(8, 16)
        batch.size = 4  # memory ran out in the second: again from its first pair, in halves
        assert right(8, 12) and right(12, 16)
        assert seen.switches == 2  # the first half was known
        batch.size = 2
        assert right(0, 2) and right(2, 4)  # begun anew
        assert right(4, 6) and right(6, 8)
        assert seen.switches <= 4


def test_pairs_that_were_not_coming_are_made_by_themselves():
    seen = Recorded()
    rows, columns = PAIRS
    with seen.outputs.coming(rows, columns, Fitting(8)):
        other = torch.tensor([3, 1]), torch.tensor([0, 5])
        assert torch.equal(seen.outputs(*other)[:, 0], torch.tensor([300.0, 105.0]))
        assert seen.switches == 1 and seen.sizes == [2]


def test_processes_with_fewer_pairs_call_the_network_as_often():
    """5 and 16 pairs, 4 at a time: padded to as many, the switches and calls are at the same
    places of both walks."""
    told = []
    for count in (5, 16):
        seen, done = Recorded(), []
        rows, columns = (values[:count] for values in PAIRS)
        pad = 16 - count
        coming = torch.cat([rows, torch.zeros(pad, dtype=torch.long)])
        others = torch.cat([columns, columns[:1].expand(pad)])
        with seen.outputs.coming(coming, others, Fitting(4)):
            for first in range(0, 16, 4):
                r, c = rows[first : first + 4], columns[first : first + 4]
                if not len(r):
                    r, c = torch.zeros(1, dtype=torch.long), columns[:1]
                assert torch.equal(seen.outputs(r, c)[:, 0], 100.0 * r + c)
                done.append((seen.switches, len(seen.sizes)))
        told.append(done)
    assert told[0] == told[1] == [(1, 4)] * 4


def test_nothing_outlives_the_context():
    seen = Recorded()
    rows, columns = PAIRS
    with seen.outputs.coming(rows, columns, Fitting(8)):
        seen.outputs(rows[:8], columns[:8])
    seen.weight = 2.0  # an optimiser step moves the average
    assert torch.equal(
        seen.outputs(rows[:8], columns[:8])[:, 0], 2 * (100.0 * rows[:8] + columns[:8])
    )
    with seen.outputs.coming(rows, columns, Fitting(8)):
        assert seen.outputs(rows[:8], columns[:8])[-1] == 2 * 7.0


@pytest.mark.parametrize("algorithm", ["nft", "awm", "grpo"])
def test_training_is_the_same_and_switches_seldom(algorithm, monkeypatch):
    found = {}
    for ahead in (1, AHEAD):  # with 1, a switch for each micro-batch, as if there were no blocks
        monkeypatch.setattr(diffusion.frozen_outputs, "AHEAD", ahead)
        one, switches = tiny_tuner(algorithm, kl_weight=0.5, inner_steps=2), [0]
        plain, anchored = one.policy._reference_weights, one.trained.anchored

        def counted(context, switches=switches):
            def entered(*args):
                switches[0] += 1
                return context(*args)

            return entered

        one.policy._reference_weights = counted(plain)
        one.trained.anchored = counted(anchored)
        metrics = one.run_epoch()
        weights = {name: p.detach().clone() for name, p in one.trained.parameters.items()}
        found[ahead] = metrics, weights, switches[0]
    for name, weight in found[1][1].items():
        assert torch.equal(weight, found[AHEAD][1][name]), name
    timeless = {k for k in found[1][0] if not k.startswith(("time/", "memory/"))}
    assert {k: found[1][0][k] for k in timeless} == {k: found[AHEAD][0][k] for k in timeless}
    assert any(weight.abs().max() > 1e-3 for weight in found[1][1].values())
    assert found[AHEAD][2] <= found[1][2] - 2 * 3  # two steps of at least four micro-batches
