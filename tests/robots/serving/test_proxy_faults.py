"""A proxy whose other server dies, hangs, talks nonsense and comes back."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
import tracemalloc

import numpy as np
import pytest
import torch

msgpack = pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from fake_servers import SHAPES, SPEC, OpenpiServer
from websockets.sync.client import connect

from genpol.steering.select import argmax
from genpol.steering.steered import Steered
from offline.critics.value import ValueFunction
from offline.errors import InputError
from robots.serving.client import RemotePolicy
from robots.serving.observations import Observations
from robots.serving.proxy import ProxySession
from robots.serving.serve import PolicyServer
from robots.serving.wire import pack, unpack

STATE = np.array([0.5, -1.0, 2.0], np.float32)
VALUE = ValueFunction(SPEC, SHAPES, hidden=(8,)).eval()
BIG = 2**24 + 1000


class Upstream:
    """An `infer` that answers a chunk, or what it is told to."""

    def __init__(self):
        self.answer = self.good

    def good(self, message):
        actions = np.random.default_rng().uniform(SPEC.low, SPEC.high, (5, 3))
        return {"actions": actions, "asked": message["state"]}

    def __call__(self, message):
        return self.answer(message)


@contextlib.contextmanager
def proxy(url, *, timeout=1.0, candidates=3, **options):
    def connected():
        return RemotePolicy.connect(
            url, env_spec=SPEC, timeout=timeout, parallel=3, chunk=2, **options
        )

    def session():
        return ProxySession(
            connected,
            lambda base: Steered(base, VALUE, candidates, argmax()),
            candidates,
            Observations(SHAPES),
            torch.Generator().manual_seed(0),
            SPEC,
        )

    with PolicyServer(session, port=0) as server:
        yield server


class Robot:
    def __init__(self, server):
        self.socket = connect(server.address, compression=None)
        self.socket.recv()

    def ask(self, value=0.5, **message):
        """The answer; raises InputError with the line that came instead."""
        self.socket.send(pack({"state": np.full(3, value, np.float32), **message}))
        answer = self.socket.recv(timeout=30)
        if isinstance(answer, str):
            assert "\n" not in answer and len(answer) <= 700 and "Traceback" not in answer, answer
            raise InputError(answer)
        return unpack(answer)

    def close(self):
        self.socket.close()


def array(**changes):
    entry = {
        b"__ndarray__": True, b"data": bytes(24), b"dtype": "<f4", b"shape": [2, 3],
        **{key.encode(): value for key, value in changes.items()},
    }  # fmt: skip
    return msgpack.packb({"actions": entry})


def raises(message):
    raise KeyError("observation/image" * 1000)


DEEP = 1.0
for _ in range(100):
    DEEP = [DEEP]

FAULTS = {
    "a traceback": (raises, "answered an error: KeyError: .*\\.\\.\\.$"),
    "killed": (lambda m: OpenpiServer.ABORT, "closed the connection"),
    "never": (lambda m: None, "did not answer within 1 s"),
    "text": (lambda m: "hello\nworld " * 10_000, "answered an error: world$"),
    "no text at all": (lambda m: "", "answered an error: .empty"),
    "escape codes": (lambda m: "\x1b[2J\x07 gone", r"answered an error: \\x1b\[2J\\x07 gone"),
    "wrong msgpack": (lambda m: b"\xc1\xc1", "no message: malformed msgpack"),
    "nothing": (lambda m: b"", "no message: malformed msgpack"),
    "a list": (lambda m: msgpack.packb([1, 2]), "expected a map of observations"),
    "lists a thousand deep": (lambda m: b"\x81\xa1a" + b"\x91" * 1000 + b"\x01", "32 deep"),
    "lists a hundred deep": (lambda m: {"actions": DEEP}, "more than 32 deep"),
    "a huge claim": (lambda m: b"\x81\xa1a\xdd\xff\xff\xff\xff", "malformed"),
    "a bomb of keys": (lambda m: msgpack.packb({"x" * 10_000: 1}), "a key of 10000 characters"),
    "another shape": (lambda m: {"actions": np.zeros((5, 7))}, "shape .5, 7., expected .H, A=3."),
    "too short": (lambda m: {"actions": np.zeros((1, 3))}, "H=1 actions, expected at least 2"),
    "no actions": (lambda m: {"logits": 3}, 'without "actions"'),
    "empty": (lambda m: {"actions": np.zeros((0, 3))}, r"shape \(0, 3\)"),
    "nested shape": (lambda m: {"actions": np.zeros([1] * 16)}, "shape"),
    "NaN": (lambda m: {"actions": np.full((5, 3), np.nan)}, "NaN or infinite"),
    "infinite as float32": (lambda m: {"actions": np.full((5, 3), 1e300)}, "NaN or infinite"),
    "words": (lambda m: {"actions": np.full((5, 3), "1.5")}, "no numbers: an array of dtype <U3"),
    "a word": (lambda m: {"actions": "left"}, "no numbers: str"),
    "ragged": (lambda m: {"actions": [[1.0], [1.0, 2.0]]}, "no numbers: list"),
    "a map": (lambda m: {"actions": {"left": 1.0}}, "no numbers: dict"),
    "objects": (lambda m: array(dtype="|O"), "dtype '.O' are refused"),
    "complex": (lambda m: array(dtype="<c8", shape=[1, 3]), "dtype '<c8' are refused"),
    "records": (lambda m: array(dtype="<f4,<f4"), "are refused"),
    "a shape that is too much": (lambda m: array(shape=[2**40, 2**40]), "takes .* bytes"),
}  # fmt: skip


def test_each_fault_is_one_line_and_the_next_request_is_served(caplog):
    upstream = Upstream()
    with OpenpiServer(upstream) as other, proxy(other.url) as server:
        robot = Robot(server)
        for name, (fault, said) in FAULTS.items():
            assert robot.ask()["actions"].shape == (2, 3)
            upstream.answer = fault
            with pytest.raises(InputError, match=said):
                robot.ask()
                pytest.fail(name)
            upstream.answer = upstream.good
        assert robot.ask()["actions"].shape == (2, 3)
        robot.close()
    # Nothing of it is news to who runs the proxy, but that answers are cut.
    cut = "the other server answers chunks of 5 actions, and robots get the first 2"
    assert all(line.startswith(cut) for line in caplog.messages)


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        ("go away", "answered an error: go away"),
        (b"\xc1", "does not speak openpi"),
        (msgpack.packb([1]), "does not speak openpi"),
        ({"genpol": 3}, "metadata of another version"),
        ({"genpol": np.zeros(3)}, "metadata of another version"),
        ({"genpol": {"spec": [1, 2]}}, "metadata of another version"),
        ({"genpol": {"spec": {"low": "x"}}}, "metadata of another version"),
        ({"genpol": {"features": 7}}, "metadata of another version"),
        ({"genpol": {"features": [["a"]]}}, "metadata of another version"),
        ({"genpol": {"obs_shapes": 7}}, "metadata of another version"),
        (bytes(BIG), "does not speak openpi"),
    ],
)
def test_a_greeting_that_makes_no_sense_is_one_line(greeting, said):
    upstream = Upstream()
    with OpenpiServer(upstream, metadata=greeting) as other:
        with proxy(other.url) as server:
            robot = Robot(server)
            for _ in range(2):
                with pytest.raises(InputError, match=said):
                    robot.ask()
            other.metadata = {"robot": "well again"}
            assert robot.ask()["actions"].shape == (2, 3)
            robot.close()


def test_a_huge_answer_is_not_read():
    upstream = Upstream()
    with OpenpiServer(upstream) as other, proxy(other.url, timeout=5.0, candidates=1) as server:
        robot = Robot(server)
        upstream.answer = lambda m: bytes(BIG)
        with pytest.raises(InputError, match="answered with more than 16777216 bytes"):
            robot.ask()
        upstream.answer = upstream.good
        assert robot.ask()["actions"].shape == (2, 3)
        robot.close()


def test_answers_that_nobody_asked_for_are_not_taken_for_later_ones():
    def twice(message):
        frame = pack({"actions": np.zeros((5, 3)), "asked": message["state"]})
        return [frame] * 3

    with OpenpiServer(twice) as other, proxy(other.url, candidates=1) as server:
        robot = Robot(server)
        for value in (1.0, 2.0, 3.0):
            assert robot.ask(value)["asked"][0] == value
            time.sleep(0.02)
        robot.close()


def test_a_hang_holds_nobody_else_up():
    upstream = Upstream()
    upstream.answer = lambda m: None if "hang" in m else upstream.good(m)
    with OpenpiServer(upstream) as other, proxy(other.url, timeout=2.0) as server:
        hung, robot = Robot(server), Robot(server)
        said = []

        def ask():
            with pytest.raises(InputError) as caught:
                hung.ask(hang=True)
            said.append(str(caught.value))

        asking = threading.Thread(target=ask)
        started = time.perf_counter()
        asking.start()
        for _ in range(10):
            assert robot.ask()["actions"].shape == (2, 3)
        assert time.perf_counter() - started < 1.5 and not said
        asking.join()
        assert time.perf_counter() - started < 4 and "did not answer within 2 s" in said[0]
        hung.close(), robot.close()


def test_who_leaves_during_a_hang_is_waited_for_by_nobody():
    upstream = Upstream()
    upstream.answer = lambda m: None if "hang" in m else upstream.good(m)
    before = threading.active_count()
    with OpenpiServer(upstream) as other:
        started = time.perf_counter()
        with proxy(other.url, timeout=60.0) as server:
            leaves, stays, robot = Robot(server), Robot(server), Robot(server)
            for one in (leaves, stays):
                one.socket.send(pack({"state": STATE, "hang": True}))
            time.sleep(0.2)
            leaves.close()
            assert robot.ask()["actions"].shape == (2, 3)
        # Nor does whoever stops the proxy wait for what still hangs.
        assert time.perf_counter() - started < 20
        robot.close(), stays.close()
    wait_for(lambda: threading.active_count() <= before)


def test_a_server_that_takes_nothing_in_is_given_up():
    """A big frame does not fit into the system's buffers: sending it must have an end, too."""
    with OpenpiServer(Upstream()) as other, proxy(other.url, candidates=1) as server:
        other.deaf = True
        robot = Robot(server)
        started = time.perf_counter()
        with pytest.raises(InputError, match="did not answer within 1 s"):
            robot.ask(image=np.zeros(12 * 2**20, np.uint8))
        assert time.perf_counter() - started < 5
        other.deaf = False
        assert robot.ask()["actions"].shape == (2, 3)
        robot.close()


def test_under_a_deadline_a_hang_ends_after_one_time_out():
    """With more candidates than connections: what has not been asked is not tried in turn."""
    upstream = Upstream()
    with OpenpiServer(upstream) as other:
        with proxy(other.url, timeout=0.4, candidates=30, deadline=0.05) as server:
            robot = Robot(server)
            assert robot.ask()["steer"]["num_candidates"] >= 1
            upstream.answer = lambda m: None
            started = time.perf_counter()
            with pytest.raises(InputError, match="did not answer"):
                robot.ask()
            assert time.perf_counter() - started < 1.5
            robot.close()


def test_a_deadline_counts_from_when_the_robot_asked():
    def slowly(message):
        time.sleep(0.05)
        return {"actions": np.random.default_rng().uniform(-1, 1, (2, 3))}

    with OpenpiServer(slowly) as other:
        remote = RemotePolicy.connect(other.url, env_spec=SPEC, parallel=1, deadline=0.3)
        with remote:
            ask = [{"state": STATE}]
            assert remote.propose(ask, 20, None).shape[1] >= 3
            late = remote.propose(ask, 20, None, since=time.perf_counter() - 0.3)
            assert late.shape[1] == 1


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def held():
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def soak(rounds):
    """Faults in turn, robots that come and go, a port that closes: what is held at the end."""
    upstream = Upstream()
    with OpenpiServer(upstream) as other:
        port = other.port
        with proxy(other.url) as server:
            robot = Robot(server)
            faults = [fault for fault, _ in FAULTS.values()]
            levels, memory = [], []
            for number in range(rounds):
                upstream.answer = faults[number % len(faults)]
                with pytest.raises(InputError):
                    robot.ask()
                guest = Robot(server)
                with contextlib.suppress(InputError):
                    guest.ask()
                guest.close()
                upstream.answer = upstream.good
                assert robot.ask()["actions"].shape == (2, 3)
                if number % len(faults) == len(faults) - 1:
                    other.messages.clear()
                    time.sleep(0.3)
                    levels.append(held())
                    memory.append(tracemalloc.get_traced_memory()[0])
            other.__exit__()
            for _ in range(rounds // 10):
                with pytest.raises(InputError, match="no policy server at"):
                    robot.ask()
            with OpenpiServer(upstream, port=port):
                assert robot.ask()["actions"].shape == (2, 3)
            other.__enter__()  # so that leaving finds it
            robot.close()
    return levels, memory


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts open files of Linux")
@pytest.mark.slow
def test_hundreds_of_failures_leave_nothing_behind():
    tracemalloc.start()
    try:
        before = held()
        levels, memory = soak(15 * len(FAULTS))
    finally:
        tracemalloc.stop()
    threads, files = zip(*levels, strict=True)
    assert max(threads[1:]) <= threads[0] + 3, threads
    assert max(files[1:]) <= files[0] + 12, files
    assert memory[-1] - memory[2] < 2**20, memory
    wait_for(lambda: held()[0] <= before[0] and held()[1] <= before[1] + 2)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts open files of Linux")
def test_failures_leave_no_connection_and_no_thread_behind():
    before = held()
    upstream = Upstream()
    with OpenpiServer(upstream) as other, proxy(other.url) as server:
        robot = Robot(server)
        robot.ask()
        level = held()
        for number in range(40):  # what leaks once for one kind of fault leaks twenty times
            upstream.answer = [raises, lambda m: OpenpiServer.ABORT][number % 2]
            with pytest.raises(InputError):
                robot.ask()
        upstream.answer = upstream.good
        assert robot.ask()["actions"].shape == (2, 3)
        # At first one of the three connections may be open: nine threads and some files follow.
        wait_for(lambda: held()[0] <= level[0] + 12 and held()[1] <= level[1] + 16)
        robot.close()
    wait_for(lambda: held()[0] <= before[0] and held()[1] <= before[1])


def test_a_port_that_only_accepts_is_one_line_too():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with proxy(f"ws://127.0.0.1:{listening.getsockname()[1]}") as server:
            robot = Robot(server)
            with pytest.raises(InputError, match="did not answer within 1 s"):
                robot.ask()
            robot.close()
