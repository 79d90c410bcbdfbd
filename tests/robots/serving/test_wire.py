"""The message format: the same bytes as openpi's client, and nothing dangerous gets in."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

msgpack = pytest.importorskip("msgpack")

from offline.errors import InputError
from robots.serving.wire import WireError, one_line, pack, unpack, unpack_map

OBS = {
    "state": np.arange(6, dtype=np.float32).reshape(2, 3),
    "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::2],  # not contiguous
    "nested": {"flags": np.array([True, False]), "empty": np.zeros((0, 7), np.int64)},
    "zero_d": np.asarray(2.5),
    "scalar": np.float32(1.5),
    "whole": np.int16(-3),
    "text": np.asarray("push the puck"),
    "prompt": "push",
    "list": [1, 2.5, None, True],
}


def assert_same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b and type(a) is type(b)


def test_round_trip():
    assert_same(unpack(pack(OBS)), OBS)


def test_same_bytes_as_openpi_client():
    theirs = pytest.importorskip("openpi_client.msgpack_numpy")
    assert pack(OBS) == theirs.packb(OBS)
    assert_same(unpack(theirs.packb(OBS)), OBS)
    assert_same(theirs.unpackb(pack(OBS)), OBS)


def test_big_endian_arrays_arrive_native():
    array = unpack(pack({"a": np.arange(3, dtype=">f8")}))["a"]
    assert array.dtype == np.dtype("f8") and array.dtype.isnative
    np.testing.assert_array_equal(array, [0, 1, 2])


@pytest.mark.parametrize(
    "value", [np.array([object()]), np.array([1j]), np.zeros(2, "i4,f4"), object(), {1, 2}]
)
def test_what_cannot_travel_is_refused(value):
    with pytest.raises(WireError):
        pack({"x": value})


def array(**changes):
    entry = {
        b"__ndarray__": True,
        b"data": bytes(8),
        b"dtype": "<f4",
        b"shape": [2],
        **{key.encode(): value for key, value in changes.items()},
    }
    return msgpack.packb({"x": entry})


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",  # a byte that msgpack never uses
        pack(OBS)[:-3],  # cut off
        pack(OBS) + b"\x00",  # something after it
        b"\x91" * 100_000,  # lists in lists
        pickle.dumps({"state": 1}),
        msgpack.packb({"x": msgpack.ExtType(5, b"abc")}),
        msgpack.packb({1: 2}),
        b"\xdd\xff\xff\xff\xff",  # a list that claims 4 billion entries
        msgpack.packb([[None] * 90_000 for _ in range(4)]),
        b"\x91" * 1000 + b"\x01",  # which msgpack itself takes
        b"\x81\xa1a" * 40 + b"\x01",
        msgpack.packb({"x" * 10_000: 1}),
        msgpack.packb({"x": {"y" * 10_000: 1}}),
        array(dtype="|O"),
        array(dtype="O"),
        array(dtype="i4,f4"),
        array(dtype="|V4"),
        array(dtype="<c8", shape=[1]),
        array(dtype=7),
        array(dtype="<f3"),
        array(dtype="<U0", shape=[2**40], data=b""),
        array(dtype="<U1", shape=[2], data=b"\xff" * 8),
        array(dtype="<U1", shape=[2], data=b"\x00\xd8\x00\x00" * 2),  # half a letter
        array(dtype="x" * 5000),
        array(shape=[3]),
        array(shape=[-2]),
        array(shape=[2**62, 2**62]),
        array(shape=[0, 2**63], data=b""),
        array(shape="no"),
        array(data="text"),
        array(data=pickle.dumps([1])),
        msgpack.packb({b"__npgeneric__": True, b"dtype": "<f4", b"data": [1]}),
        msgpack.packb({b"__npgeneric__": True, b"dtype": "|i1", b"data": 1000}),
        msgpack.packb({b"__npgeneric__": True, b"dtype": "<f4", b"data": "1.5"}),
    ],
)
def test_malformed_frames_raise_one_line(frame):
    with pytest.raises(WireError) as caught:
        unpack(frame)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert isinstance(caught.value, InputError)


def test_random_damage_never_raises_anything_else():
    good, rng = bytearray(pack(OBS)), np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        frame = bytearray(good)
        for _ in range(int(rng.integers(1, 6))):
            frame[int(rng.integers(len(frame)))] = int(rng.integers(256))
        try:
            unpack(bytes(frame))
        except WireError:
            refused += 1
    assert refused > 200


def test_limits_and_kinds_of_frames():
    frame = pack({"image": np.zeros(1000, np.uint8)})
    assert len(unpack(frame, max_bytes=len(frame))["image"]) == 1000
    with pytest.raises(WireError, match="limit is 500"):
        unpack(frame, max_bytes=500)
    with pytest.raises(WireError, match="text frame"):
        unpack("hello")
    with pytest.raises(WireError, match="expected a map .* received list"):
        unpack_map(pack([1, 2]))
    with pytest.raises(WireError, match="text keys"):
        unpack_map(msgpack.packb({b"a": 1}))


def test_an_error_is_one_line_of_bounded_length_that_steers_no_terminal():
    assert one_line(ValueError("a\x1b[2Jb")) == r"a\x1b[2Jb"
    assert one_line(ValueError("two\nlines ")) == "two lines" and one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 10**6))) == 600


def test_a_map_of_maps_is_taken():
    message: dict = {"a": [1]}
    for _ in range(20):
        message = {"a": message}
    assert unpack(pack(message)) == message
