"""Gradient steps in several sittings: rows, what is checked, and a stream that goes on."""

from __future__ import annotations

import pytest
import torch
from toy_data import ListEpisodes, episode, spec

from offline.data.dataset_training import CHECK_EVERY, Steps
from offline.data.transitions import Transitions
from offline.errors import InputError


class Counting:
    """Its loss is the step; its weight becomes `bad` at a step of one's choice."""

    name, loss, fingerprint = "counting", "loss", ""

    def __init__(self, bad: float = 0.0, at: int = -1, bad_loss: float | None = None) -> None:
        self.weight, self.bad, self.at = torch.zeros(2), bad, at
        self.bad_loss = bad_loss

    def update(self, step):
        if step == self.at:
            self.weight[1] = self.bad
            if self.bad_loss is not None:
                return {"loss": torch.tensor(self.bad_loss)}
        return {"loss": torch.tensor(0.1 * step)}

    def report(self, row):
        return dict(row.means)

    def final(self):
        return {"final": 1.0}

    def weights(self):
        return [self.weight]

    def state_dict(self):
        return {"weight": self.weight.clone()}

    def load_state_dict(self, state):
        self.weight.copy_(state["weight"])


def rows_of(*sittings: int, total: int = 10, log_every: int = 4):
    """Rows of `total` steps taken in sittings that end at these steps."""
    rows: list[tuple[int, dict]] = []
    state = None
    for end in (*sittings, total):
        steps = Steps(Counting(), total, log_every=log_every)
        if state is not None:
            steps.load_state_dict(state)
        steps.take(lambda *row: rows.append(row), stop=lambda: steps.step >= end)  # noqa: B023
        state = steps.state_dict()
    assert steps.complete
    steps.finish(lambda *row: rows.append(row))
    return rows


def test_rows_are_means_since_the_row_before_and_the_last_waits_for_the_end():
    rows = rows_of()
    assert [step for step, _ in rows] == [4, 8, 10]
    assert [row["loss"] for _, row in rows] == pytest.approx([0.15, 0.55, 0.85])
    assert "final" not in rows[1][1] and rows[2][1]["final"] == 1.0


@pytest.mark.parametrize("sittings", [(1,), (3, 5), (4,), (9,), (10,)])
def test_sittings_change_no_row(sittings):
    assert rows_of(*sittings) == rows_of()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_noticed_though_the_loss_is(bad):
    steps = Steps(Counting(bad, at=3), 1000, log_every=500)
    with pytest.raises(InputError, match=r"counting diverged at step \d+ \(its weights became"):
        steps.take()
    assert 3 < steps.step <= CHECK_EVERY
    steps = Steps(Counting(bad, at=3), 1000, log_every=500)
    steps.take(stop=lambda: steps.step == 5)  # stopped before the next check: nor is it saved
    with pytest.raises(InputError, match="diverged at step 5"):
        steps.check()


def test_a_loss_that_is_not_finite_is_noticed_at_once():
    logged = []
    steps = Steps(Counting(bad_loss=float("nan"), at=3), 1000, log_every=2)
    with pytest.raises(InputError, match=r"diverged at step 4 \(its loss became nan\): try a sm"):
        steps.take(lambda *row: logged.append(row))
    assert [step for step, _ in logged] == [2]


# Transitions


def data(**rest) -> Transitions:
    episodes = [episode(4 + i, success=i % 2 == 0, seed=i) for i in range(9)]
    return Transitions(ListEpisodes(episodes, spec()), 2, **rest)


@pytest.mark.parametrize("memory_limit", [400, 2 << 30])
def test_a_stream_goes_on_where_it_stood(memory_limit):
    whole, first, then = (data(memory_limit=memory_limit) for _ in range(3))
    draws = [torch.Generator().manual_seed(0) for _ in range(3)]
    expected = [whole.sample(8, draws[0]).act for _ in range(40)]
    found = [first.sample(8, draws[1]).act for _ in range(17)]
    then.load_state_dict(first.state_dict())
    draws[2].set_state(draws[1].get_state())
    found += [then.sample(8, draws[2]).act for _ in range(23)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_the_fingerprint_is_of_all_that_is_learnt_from():
    def fingerprint(change=None, **rest) -> str:
        episodes = [episode(4, seed=i, success=True, language="left") for i in range(3)]
        episodes[1].obs["unused"] = episodes[1].obs["state"].copy()
        if change:
            change(episodes)
        rest = {"obs_keys": ["state"], "reward": "none"} | rest
        return Transitions(ListEpisodes(episodes, spec()), 1, **rest).fingerprint

    def replace(name, value):
        return lambda episodes: object.__setattr__(episodes[1], name, value)

    def add(array):
        def change(episodes):
            array(episodes[1])[-1] += 1

        return change

    same = fingerprint()
    assert same == fingerprint() == fingerprint(memory_limit=10)
    assert same == fingerprint(add(lambda e: e.obs["unused"]))
    others = [
        fingerprint(add(lambda e: e.obs["state"])),
        fingerprint(add(lambda e: e.actions)),
        fingerprint(add(lambda e: e.rewards)),
        fingerprint(replace("success", None)),
        fingerprint(replace("terminated", True)),
        fingerprint(replace("language", "right")),
        fingerprint(indices=[0, 1]),
    ]
    assert len({same, *others}) == 8
