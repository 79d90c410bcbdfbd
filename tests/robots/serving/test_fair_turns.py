"""Clients of one server: greedy ones hold nobody up, and what they ask for is counted."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest
import torch

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

from fake_servers import SHAPES, SPEC, Counter
from websockets.sync.client import connect

from genpol.steering.select import argmax
from genpol.steering.steered import Steered
from offline.critics.value import ValueFunction
from offline.errors import InputError
from robots.serving.observations import Observations
from robots.serving.serve_policy import serve_policy
from robots.serving.sessions import PolicySession
from robots.serving.wire import pack, unpack

STATE = np.array([1.0, 2.0, 3.0])


class Slow(Counter):
    """A sample takes a little time; `asked` is what all clients' copies were asked for."""

    def __init__(self, seconds):
        super().__init__(noise=0.1)
        self.seconds, self.asked = seconds, []

    def __deepcopy__(self, memo):
        copy = Slow(self.seconds)
        copy.asked = self.asked
        return copy

    def sample(self, obs, n, generator):
        self.asked.append(n)
        time.sleep(self.seconds * n)
        return super().sample(obs, n, generator)


class Robot:
    def __init__(self, server):
        self.socket = connect(server.address, compression=None, max_size=None)
        self.socket.recv()

    def send(self, **message):
        self.socket.send(pack({"state": STATE, **message}))

    def ask(self, **message):
        self.send(**message)
        answer = self.socket.recv(timeout=60)
        if isinstance(answer, str):
            raise InputError(answer)
        return unpack(answer)


@contextlib.contextmanager
def greedy(server, count, **message):
    """So many clients that ask without a pause."""
    stop = threading.Event()

    def ask(robot):
        while not stop.is_set():
            robot.ask(**message)

    robots = [Robot(server) for _ in range(count)]
    threads = [threading.Thread(target=ask, args=[robot]) for robot in robots]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.1)
        yield
    finally:
        stop.set()
        for robot in robots:
            robot.socket.close()
        for thread in threads:
            thread.join()


@pytest.fixture(autouse=True)
def _closed_on_purpose(monkeypatch):
    """Greedy clients end when their connection does."""
    from websockets.exceptions import ConnectionClosed

    def quiet(args):
        assert issubclass(args.exc_type, ConnectionClosed | TimeoutError), args

    monkeypatch.setattr(threading, "excepthook", quiet)


def test_eight_greedy_clients_do_not_hold_another_up():
    """An answer waits for a slice or two of them: for 16 samples, not for 8 times 1,000."""
    policy = Slow(0.0002)
    options = {"samples_per_turn": 16, "rate_limit": 1e6}
    with serve_policy(policy, port=0, **options) as server:
        robot = Robot(server)
        robot.ask()
        with greedy(server, 8, num_samples=1000):
            between = []
            for _ in range(20):
                before = len(policy.asked)
                robot.ask()
                between.append(len(policy.asked) - before - 1)
                time.sleep(0.01)
        assert set(policy.asked) <= {1, 16, 8}  # 62 slices of 16, and the rest
        assert np.median(between) <= 2 and max(between) <= 8, between
        robot.socket.close()


def test_slices_do_not_depend_on_who_else_asks():
    policy, home = Slow(1e-6), Counter(noise=0.1)
    obs = {"state": torch.from_numpy(STATE).float()[None]}
    rng = torch.Generator().manual_seed(5)
    pieces = [home.sample(obs, n, rng)[0] for n in (16, 16, 8)]
    expected = SPEC.clip(SPEC.unnormalize(torch.cat(pieces))).numpy()
    with serve_policy(policy, port=0, samples_per_turn=16, rate_limit=1e6) as server:
        robot = Robot(server)
        alone = robot.ask(num_samples=40, seed=5)["actions"]
        with greedy(server, 2, num_samples=100):
            beside = [robot.ask(num_samples=40, seed=5)["actions"] for _ in range(3)]
        robot.socket.close()
    np.testing.assert_allclose(alone, expected, atol=1e-6)
    for act in beside:
        np.testing.assert_array_equal(act, alone)


def test_samples_count_and_a_decision_of_the_same_client_goes_on():
    with serve_policy(Counter(), port=0, rate_limit=100) as server:
        robot, other = Robot(server), Robot(server)
        assert robot.ask(num_samples=120)["actions"].shape == (120, 2, 3)
        with pytest.raises(InputError, match="more than 100 samples per second; wait 0.[12]"):
            robot.ask(num_samples=1)
        assert robot.ask()["actions"].shape == (2, 3)
        assert other.ask(num_samples=50)["actions"].shape == (50, 2, 3)
        time.sleep(0.25)
        assert robot.ask(num_samples=1)["actions"].shape == (1, 2, 3)
        robot.socket.close(), other.socket.close()


def test_a_request_has_a_bound_on_its_samples():
    with serve_policy(Counter(), port=0, max_samples=8) as server:
        robot = Robot(server)
        assert len(robot.ask(num_samples=8)["actions"]) == 8
        with pytest.raises(InputError, match='"num_samples" is 9, expected 1 to 8'):
            robot.ask(num_samples=9)
        robot.socket.close()
    for wrong in ({"max_samples": 0}, {"samples_per_turn": 0}, {"rate_limit": float("nan")}):
        with pytest.raises(InputError):
            serve_policy(Counter(), port=0, **wrong)


def steered(seconds, deadline, candidates):
    value = ValueFunction(SPEC, SHAPES, hidden=(8,)).eval()
    return Steered(Slow(seconds), value, candidates, argmax(), deadline=deadline, check=False)


def test_a_slice_of_a_steered_policy_counts_its_candidates():
    policy = steered(1e-6, None, 8)
    with serve_policy(policy, port=0, samples_per_turn=20) as server:
        robot = Robot(server)
        assert robot.ask(num_samples=5)["actions"].shape == (5, 2, 3)
        robot.socket.close()
    assert policy.base.asked == [16, 16, 8]  # two picks of eight, twice, and one


def test_waiting_for_a_turn_counts_towards_the_deadline():
    session = PolicySession(
        steered(0.001, 0.1, 64), Observations(SHAPES), torch.Generator().manual_seed(0)
    )

    def candidates(waited):
        arrived = time.perf_counter() - waited
        with pytest.raises(StopIteration) as end:
            next(session.infer({"state": STATE}, arrived))
        assert time.perf_counter() - arrived < 0.15 + max(0.0, waited - 0.1)
        return end.value.value["steer"]["num_candidates"]

    alone = [candidates(0.0) for _ in range(8)]
    assert max(alone) == 64
    assert all(candidates(0.06) <= 36 for _ in range(3))
    assert candidates(0.5) == 1  # too late for any choice, and still an answer
    assert candidates(0.0) >= 32


def test_many_samples_share_one_deadline():
    with serve_policy(steered(0.001, 0.2, 64), port=0, samples_per_turn=64) as server:
        robot = Robot(server)
        started = time.perf_counter()
        assert robot.ask(num_samples=8)["actions"].shape == (8, 2, 3)
        assert time.perf_counter() - started < 0.4  # not eight times 64 ms
        robot.socket.close()


def test_nothing_is_computed_for_whoever_has_gone():
    policy = Slow(0.001)
    with serve_policy(policy, port=0, samples_per_turn=10) as server:
        robot, other = Robot(server), Robot(server)
        robot.send(num_samples=1000)
        while len(policy.asked) < 2:
            time.sleep(0.005)
        robot.socket.close()
        other.ask()
        time.sleep(0.05)
        done = len(policy.asked)
        time.sleep(0.1)
        assert len(policy.asked) == done < 20
        other.socket.close()
