"""Malformed frames: to the server from strangers, and to the client from a server."""

from __future__ import annotations

import logging
import random
import warnings

import numpy as np
import pytest
import torch

msgpack = pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from fake_servers import SHAPES, SPEC, Counter, OpenpiServer
from malformed import LONGEST_LINE, byte_variants
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from offline.errors import InputError
from robots.serving.client import RemotePolicy
from robots.serving.serve_policy import serve_policy
from robots.serving.wire import pack, unpack

pytestmark = pytest.mark.slow

STATE = np.array([1.0, 2.0, 3.0], np.float32)
GOOD = pack({"state": STATE})
IMAGE = np.zeros((4, 4, 3), np.uint8)
DEEP = b"\x91" * 1000 + b"\x01"


def array(data=bytes(12), dtype="<f4", shape=(3,), **more):
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": list(shape), **more}


# What stands where something else belongs, as msgpack has it.
VALUES = (
    None, True, -1, 0, 3, 2**64 - 1, -(2**63), 1e300, float("nan"), float("inf"), "", "text",
    "x" * 100_000, "\x00\x1b[2J", b"bytes", [], [[]], {}, {"a": {"a": {"a": None}}},
    [1, "two", None], [[1.0, 2.0], [3.0]], [float("nan")] * 3, ["1", "2", "3"], [2**64 - 1] * 3,
    [True, False, True], [1.0] * 50_000, msgpack.ExtType(5, b"abc"), msgpack.Timestamp(1, 1),
    array(np.array([1, np.nan, 2], "f4").tobytes()), array(np.full(3, 1e300).tobytes(), "<f8"),
    array(np.full(3, np.inf).tobytes(), "<f8"), array(dtype="|O"), array(dtype="<c8"),
    array(dtype="<f4,<f4"), array(dtype="<M8[s]"), array(dtype="|V4"), array(dtype="<f3"),
    array(dtype=None), array(dtype="x" * 5000), array(shape=(2,)), array(shape=(-3,)),
    array(shape=(3, 2**62)), array(shape=(2**70 % 2**63,)), array(shape=("3",)),
    array(shape=(1,) * 17), array(shape=(1,) * 16, data=bytes(4)), array(shape=(0, 3), data=b""),
    array(shape=(0,) * 16, data=b""), array(data="text"), array(data=None), array(data=[1, 2, 3]),
    array("abc".encode("utf-32-le"), "<U1"), array(b"\xff" * 12, "<U1"),
    array(b"\x00\xd8\x00\x00" * 3, "<U1"), array(b"abc", "|S1"), array(bytes(3), "|b1"),
    array(bytes(6), "<f2"), array(bytes(48), "<f16"), array(bytes(24), "<i8"),
    array(bytes(4), shape=()), array(bytes(48), "|u1", (4, 4, 3)), array(bytes(21), "|u1", (7, 3)),
    {b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f4"},
    {b"__npgeneric__": True, b"data": "nan", b"dtype": "<f4"},
    {b"__npgeneric__": True, b"data": 1000, b"dtype": "|i1"},
    {b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"},
    {b"__npgeneric__": True}, {b"__ndarray__": True},
)  # fmt: skip
KEYS = (
    "state",
    "image",
    "prompt",
    "reset",
    "executed",
    "num_samples",
    "seed",
    "actions",
    "x" * 300,
)


def frames(seed, count, good):
    """Spoilt frames: nonsense, torn and changed bytes, and values of other kinds in the fields."""
    draw = random.Random(seed)
    whole = [
        b"", b"\xc1", DEEP, b"\x81\xa1a" + DEEP, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
        b"\x80", b"\x90", b"\xc0", msgpack.packb({1: 2}), msgpack.packb({None: 2}),
        msgpack.packb({"a": {2: {"b": 1}}}), msgpack.packb({"x" * 10_000: {"y": 1}}),
        msgpack.packb([[None] * 90_000] * 3), msgpack.packb({str(i): i for i in range(50_000)}),
        b"\x82\xa1a\x01\xa1a\x02", b"\x81\xa2\xff\xfe\x01", "", "text", "x" * 100_000,
        "Traceback (most recent call last):\n  File\nKeyError: 'x'", '{"state": [1, 2, 3]}',
        GOOD + b"\x00", b"GET / HTTP/1.1\r\n\r\n",
    ]  # fmt: skip
    yield from whole[:count]
    spoilt = byte_variants(good, seed, count // 3)
    for _ in range(count - len(whole)):
        frame = next(spoilt, None) if draw.random() < 0.4 else None
        if frame is not None:
            yield frame
            continue
        fields = msgpack.unpackb(good, strict_map_key=False)
        for _ in range(draw.randrange(1, 3)):
            fields[draw.choice(KEYS)] = draw.choice(VALUES)
        yield msgpack.packb(fields)


def check_line(line):
    assert isinstance(line, str) and "\n" not in line and line.isprintable(), line[:500]
    assert 0 < len(line) <= LONGEST_LINE, line
    assert "Traceback" not in line and "internal error" not in line, line


class Silent(Counter):
    """Takes any observation, and does not say which it needs."""

    def __init__(self):
        super().__init__()
        del self.obs_shapes

    def sample(self, obs, n, generator):
        return torch.zeros(1, n, 2, 3)


@pytest.fixture(params=["given shapes", "whatever comes", "images and language"])
def server(request):
    """Of a policy that says what it observes, of one that does not, and of one that sees."""
    options = {}
    policy = Silent() if request.param == "whatever comes" else Counter()
    if request.param == "images and language":
        shapes = {**SHAPES, "image": (4, 4, 3), "language": (2,)}
        options = {"obs_shapes": shapes, "embed": lambda text: torch.zeros(2), "prompt": "push"}
    with serve_policy(policy, port=0, rate_limit=1e9, **options) as served:
        yield served


def test_the_server_answers_each_with_a_line_and_serves_others(server, caplog):
    good = pack({"state": STATE, "image": IMAGE})
    bystander = connect(server.address, compression=None)
    bystander.recv()
    stranger, refused, taken = None, 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # numpy's about infinite casts, say
        for number, frame in enumerate(frames(1, 150, good)):
            if stranger is None or number % 10 == 0:  # some are the first of their connection
                if stranger is not None:
                    stranger.close()
                stranger = connect(server.address, compression=None)
                stranger.recv()
            stranger.send(frame)
            answer = stranger.recv(timeout=20)
            if isinstance(answer, str):
                check_line(answer)
                refused += 1
            else:  # not all of it is malformed
                actions = unpack(answer).get("actions")
                assert actions is None or np.isfinite(actions).all()
                taken += 1
            if number % 5 == 0:
                bystander.send(good)
                assert unpack(bystander.recv(timeout=20))["actions"].shape == (2, 3)
    assert refused > 80 and taken > 0
    assert not caplog.records, caplog.text
    stranger.close(), bystander.close()


def test_broken_websocket_frames_end_their_connection_only(server, caplog):
    draw = random.Random(2)
    bystander = connect(server.address, compression=None)
    bystander.recv()
    for _ in range(30):
        stranger = connect(server.address, compression=None)
        stranger.recv()
        stranger.socket.sendall(draw.randbytes(draw.randrange(2, 400)))
        stranger.socket.close()
        bystander.send(pack({"state": STATE, "image": IMAGE}))
        assert unpack(bystander.recv(timeout=20))["actions"].shape == (2, 3)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    bystander.close()


def ask(policy):
    """What comes of one request: the proposals, or the line of an InputError."""
    try:
        act = policy.sample({"state": torch.zeros(1, 3)}, 2, None)
    except InputError as error:
        check_line(str(error))
        return str(error)
    assert torch.isfinite(act).all() and act.shape[0] == 1 and act.shape[3] == 3
    return act


def test_the_client_turns_each_answer_into_a_line():
    good = pack({"actions": np.zeros((2, 3), np.float32)})
    spoilt, refused = iter(frames(3, 130, good)), 0
    with OpenpiServer(lambda message: good) as other:
        with RemotePolicy.connect(
            other.url, env_spec=SPEC.with_chunk(2), chunk=2, parallel=1, timeout=20
        ) as policy:
            for frame in spoilt:
                other.infer = lambda message, frame=frame: frame
                refused += isinstance(ask(policy), str)
                other.infer = lambda message: good
                assert isinstance(ask(policy), torch.Tensor), frame[:100]
    assert refused > 60


def test_the_client_turns_each_greeting_and_each_answer_of_our_own_kind_into_a_line():
    ours = {"features": ["num_samples"], "obs_shapes": {"state": [3]}, "spec": SPEC.to_dict()}
    answer = {"actions": np.zeros((2, 2, 3), np.float32)}
    draw, refused = random.Random(4), 0
    plain = [value for value in VALUES if not isinstance(value, msgpack.ExtType)]
    with OpenpiServer(lambda message: pack(answer), metadata={"genpol": ours}) as other:
        for number in range(80):
            spoilt = dict(ours) if number % 2 else {**ours, "spec": dict(ours["spec"])}
            parts = spoilt if number % 2 else spoilt["spec"]
            parts[draw.choice(sorted(parts))] = draw.choice(plain)
            greeting = draw.choice(plain) if number % 8 == 0 else spoilt
            other.metadata = msgpack.packb({"genpol": greeting})
            try:
                with RemotePolicy.connect(other.url, timeout=20) as policy:
                    ask(policy)
            except InputError as error:
                check_line(str(error))
                refused += 1
        other.metadata = {"genpol": ours}
        with RemotePolicy.connect(other.url, timeout=20) as policy:
            assert ask(policy).shape == (1, 2, 2, 3)
            for value in VALUES:
                other.infer = lambda message, value=value: msgpack.packb({"actions": value})
                assert isinstance(ask(policy), str), value
                other.infer = lambda message: pack(answer)
                assert ask(policy).shape == (1, 2, 2, 3)
    assert refused > 40


def test_whoever_is_not_let_in_is_told_in_a_line(server):
    """What is no websocket at all ends before anything of ours is reached."""
    import socket

    draw = random.Random(5)
    host, port = server.address.removeprefix("ws://").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(draw.randbytes(200) + b"\r\n\r\n")
    with connect(server.address, compression=None) as robot:
        robot.recv()
        robot.send(pack({"state": STATE, "image": IMAGE}))
        try:
            assert unpack(robot.recv(timeout=20))["actions"].shape == (2, 3)
        except ConnectionClosed as error:  # pragma: no cover
            raise AssertionError("the server is gone") from error
