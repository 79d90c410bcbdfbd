"""Turns: a short piece of work waits for one slice, long ones get on, and waiting takes no turn."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest

from robots.serving.turns import Client, Dropped, Turns


@pytest.fixture
def turns():
    made = Turns()
    yield made
    made.close()


class Held:
    """While it is held nothing else has a turn, so that what is submitted meets in the queue."""

    def __init__(self, turns):
        self.turns, self.entered, self.leave = turns, threading.Event(), threading.Event()

    def __enter__(self):
        def hold():
            self.entered.set()
            assert self.leave.wait(30)

        self.turns.submit(Client(), hold)
        assert self.entered.wait(30)

    def __exit__(self, *_):
        self.leave.set()


def slices(name, count, log, seconds=0.0):
    def work():
        for number in range(count):
            if number:
                yield None
            log.append(name)
            time.sleep(seconds)
        return name, count

    return work


def test_a_short_request_waits_for_one_slice_of_a_long_one(turns):
    log = []
    with Held(turns):
        long = [turns.submit(Client(), slices(name, 4, log)) for name in "AB"]
        short = [turns.submit(Client(), slices(name, 1, log)) for name in "xy"]
    assert [one.result(30) for one in (*long, *short)] == [("A", 4), ("B", 4), ("x", 1), ("y", 1)]
    # What was never interrupted first, a slice of the others after each.
    fresh, rest = log[0::2][:4], [*log[1::2][:3], *log[7:]]
    assert sorted(fresh) == ["A", "B", "x", "y"] and sorted(rest) == ["A"] * 3 + ["B"] * 3


def test_a_stream_of_short_requests_leaves_every_other_turn_to_long_ones(turns):
    log, client = [], Client()

    def again(_):
        if log.count("s") < 50:
            turns.submit(client, slices("s", 1, log)).add_done_callback(again)

    with Held(turns):
        long = turns.submit(Client(), slices("L", 20, log))
        again(None)
        again(None)  # so that one is always there
    assert long.result(30) == ("L", 20)
    last = max(at for at, name in enumerate(log) if name == "L")
    assert 18 <= log[:last].count("s") <= 22


def test_among_long_ones_the_least_served_goes_on(turns):
    log = []
    with Held(turns):
        slow = turns.submit(Client(), slices("slow", 4, log, seconds=0.02))
        fast = turns.submit(Client(), slices("fast", 12, log))
    fast.result(30), slow.result(30)
    # By time, and not by turns: 12 short slices end before the second long one.
    assert log.index("slow") < 2 and log[-2:] == ["slow", "slow"]
    assert "fast" not in log[log.index("slow", 2) + 1 :]


def test_a_newcomer_has_no_claim_to_the_past(turns):
    old, new = Client(), Client()
    for _ in range(5):
        turns.submit(old, lambda: time.sleep(0.02)).result(30)
    turns.submit(new, lambda: None).result(30)
    assert new.clock > 0.07 and old.clock - new.clock < 0.04  # at most one turn ahead


def test_waiting_for_something_takes_no_turn(turns):
    awaited: Future[int] = Future()

    def work():
        yield awaited
        return awaited.result() + 1

    waiting = turns.submit(Client(), work)
    assert turns.submit(Client(), lambda: "other").result(30) == "other"
    assert not waiting.done()
    awaited.set_result(1)
    assert waiting.result(30) == 2


def test_errors_are_their_owners(turns):
    failing: Future[None] = Future()

    def bad():
        yield None
        raise ValueError("mine")

    def waits():
        yield failing
        failing.result()

    one, two = turns.submit(Client(), bad), turns.submit(Client(), waits)
    failing.set_exception(KeyError("upstream"))
    with pytest.raises(ValueError, match="mine"):
        one.result(30)
    with pytest.raises(KeyError):
        two.result(30)
    assert turns.submit(Client(), lambda: 3).result(30) == 3


def test_what_nobody_wants_is_given_up(turns):
    log, ended, wanted = [], [], True

    def work():
        try:
            for _ in range(1000):
                log.append(1)
                yield None
        finally:
            ended.append(1)

    with Held(turns):
        one = turns.submit(Client(), work, wanted=lambda: wanted and len(log) < 3)
    with pytest.raises(Dropped):
        one.result(30)
    assert len(log) == 3 and ended == [1]


def test_closing_gives_up_what_waits():
    turns, never = Turns(), Future()

    def waits():
        yield never

    waiting = turns.submit(Client(), waits)
    turns.submit(Client(), lambda: None).result(30)
    turns.close()
    late = turns.submit(Client(), lambda: None)
    never.set_result(None)  # whoever comes too late finds nobody
    for one in (waiting, late):
        with pytest.raises(Dropped):
            one.result(30)
    assert turns._thread is not None and not turns._thread.is_alive()


def test_sys_exit_of_what_is_served_is_an_error_of_its_client_alone(turns):
    """As SystemExit it would end the server's event loop, and everybody's service."""

    def leave():
        raise SystemExit(0)

    with pytest.raises(RuntimeError, match=r"sys\.exit\(0\)"):
        turns.submit(Client(), leave).result(30)
    assert turns.submit(Client(), lambda: "on").result(30) == "on"
