# ruff: noqa: E501
"""Malformed reward specifications, and what a reward server may answer."""

from __future__ import annotations

import json
import math
import random
import socket
import threading
from contextlib import contextmanager

import pytest
import torch
from chat_servers import chatting, says
from malformed import LEAVES, LONGEST_LINE, byte_variants, json_variants, nested, refusal
from reward_servers import answering

from diffusion.errors import InputError
from diffusion.rewards import Reward, load_reward
from diffusion.rewards.remote import RemoteReward

pytestmark = pytest.mark.slow

LONG = "x" * 100_000
SPECIFICATIONS = [
    "2*attributes+nan*jpeg", "nan", "inf*gold", "1e999*gold", "-1e999*gold", "1e-999*", "*", "+", "-", "@",
    "module:", ":function", ":", "::", "a:b:c", "os:", "os:path", "os:system:", "os.path:join.x", "math:pi.real",
    "math:pi", "math:pi.x", "builtins:None", "sys:modules", "__main__:x", "..:x", ".a:b", "a..b:c", "a.:b",
    "http://", "https://", "http:///x", "http://:80", "http://[", "http://[::1", "http://a b", "http://a:b",
    "http://a:-1", "http://a:99999", "http://a:1?batch=", "http://a:1?timeout=-inf", "http://a:1?retries=1e3",
    "http://a:1?backoff=1e300", "http://a:1?timeout=1e300", "http://a:1?batch=" + "9" * 5000, "http://\0/",
    "http://\u2603.\u2603:1?retries=0&backoff=0", "http://xn--:1?retries=0", "http://a@b@c:1?retries=0",
    "http://127.0.0.1:1?retries=0", "http://" + LONG, "http://a:1?key_env=", "http://a:1?key_env=%00",
    "http://a:1?key_file=", "http://a:1?key_file=/", "http://a:1?key_file=%00", "http://a:1?key_file=" + LONG,
    "http://" + "a." * 2000 + "b:1?retries=0", "http://.:1?retries=0", "http://%00:1?retries=0",
    "ftp://a", "file:///etc/passwd", "clip@", "clip@ ", "clip@" + LONG, "clip@\0", 'clip@"', "clip@'x",
    "aesthetic@" + LONG, "aesthetic@\0", "pickscore@/dev/null", "gold@x", "gold gold", "gold+", "gold++gold",
    "gold,gold", "2gold", "2**gold", "2*3*gold", "(gold)", "gold;", "gold\n*", "\0", "\ud800", "é", "gold\0",
    LONG, LONG + ":" + LONG, "1" * 100_000 + "*gold", "1" * 100_000, "gold+" * 20_000, "-" * 100_000,
    "(" * 1000, "tiny_rewards:" + LONG, "tiny_rewards:" + "a." * 50_000 + "b", "a." * 50_000 + "b:c",
    nested(), "{}", "[]", "null", "", " ", "\t\n",
    "min", "min(", "min()", "min(gold)", "min(gold,", "min(gold,)", "min(,gold)", "min(gold,attributes", "min gold",
    "min(gold,attributes))", "min(gold;attributes)", "min(gold attributes)", "MIN(gold,attributes)", "max(gold,gold)",
    "min(" * 1000, "min(" * 2000 + "gold", "gold,min(gold,gold)", "gold(gold,gold)", "2*min", "min*2(gold,gold)",
    "mean(gold,gold)gold", "var(gold,nope)", "std(1e999*gold,gold)", "mean - 0.5*var", "min(gold,min(gold,min(gold,",
    "min(" + "gold," * 2000 + "gold", "mean(clip@(,gold)", "min(clip@/w/a)b,gold)", "min(clip@'a,gold)", "_(gold,gold)",
    "tiny_rewards:brightness@", "tiny_rewards:brightness@jpg", "tiny_rewards:brightness@pil/x", "math:sin", "os:getcwd",
    "tiny_rewards:brightness@" + LONG, "tiny_rewards:asked", "builtins:object",
    "os:sep", "tiny_rewards:brightness(gold)", "ocr@x", "ocr(gold)", "vlm", "vlm@",
    "vlm@x", "vlm@" + LONG, "vlm@http://", "vlm@http://[", "vlm@ftp://h", "vlm@http://a:99999", "vlm@http://h:1?x=1",
    "vlm@http://h:1?low=nan", "vlm@http://h:1?low=3&high=2", "vlm@http://h:1?high=-1", "vlm@http://h:1?concurrency=0",
    "vlm@http://h:1?concurrency=1e9", "vlm@http://h:1?max_tokens=" + "9" * 5000, "vlm@http://h:1?instruction=",
    "vlm@http://h:1?instruction=%00", "vlm@http://h:1?instruction=/", "vlm@http://h:1?instruction=" + LONG,
    "vlm@http://h:1?instruction=~nobody-here/x", "vlm@http://127.0.0.1:1?retries=0", "vlm@http://h:1?key_file=%00",
    "vlm@http://127.0.0.1:1?model=m&retries=0", "vlm@http://h:1?model=" + LONG + "&low=x",
]  # fmt: skip
TOKENS = [
    "gold", "attributes", "jpeg_compressibility", "nope", "clip", "+", "-", "*", "@", ":", ".", " ", "2", "1e5",
    "nan", "inf", "-3", "os", "tiny_rewards:brightness", "min(", "mean(", ",", ")", "@pil", "/w/x", '"', "'", "?", "\\", "%00", "\n", "é", "~",
]  # fmt: skip


def one_line(error):
    said = str(error)
    assert "\n" not in said and len(said) < LONGEST_LINE, said[:2000]


def test_specifications():
    draw = random.Random(0)
    words = ["".join(draw.choices(TOKENS, k=draw.randrange(1, 9))) for _ in range(200)]
    refused = []
    for expression in SPECIFICATIONS + words:
        try:
            load_reward(expression)
        except InputError as error:
            one_line(error)
            refused.append(expression)
    assert set(SPECIFICATIONS) == set(SPECIFICATIONS) & set(refused)
    assert len(refused) > 250


@pytest.mark.parametrize("expression", SPECIFICATIONS[::6])
def test_specifications_on_the_command_line(expression, tmp_path):
    if "\ud800" in expression or "\0" in expression or expression.startswith("-"):
        pytest.skip("no shell passes these on as a value")
    output = tmp_path / "run"
    refusal(["finetune", "--reward", expression, "--output", str(output)], output)


GOOD = {"rewards": [0.5, -1.5]}
IMAGES, PROMPTS = torch.zeros(2, 3, 4, 4), ["a cat", "a dog" + LONG]
OUT_OF_PLACE = [
    *(b'{"rewards": [1, %s]}' % text for text in (
        b"1e39", b"-1e300", b"1e999", b"NaN", b"-Infinity", b"null", b"true", b'"1"', b"[]", b"{}", b"1" * 5000,
        b"0x10", b"1_0", b"+1", b".5", b"1.", b"01", b"--1", b'"NaN"', b"1e", b"nan", b"undefined",
    )),
    b"", b" ", b"\0", b"\xff\xfe", b"{", nested(100_000).encode(), b'{"rewards":' * 10_000,
    b'{"rewards": ' + b"[" * 50_000, b'[{"rewards": [1, 2]}]', b'{"REWARDS": [1, 2]}', b'{"rewards": {"0": 1}}',
    b'{"rewards": [1, 2], "rewards": []}', b'{"rewards": [1, 2]}{}', b'{"rewards": [1, 2],}',
    b'{"rewards": [1' + b",1" * 400_000 + b"]}", b"<html></html>" * 1000, b'{"rewards": "' + b"x" * 900_000 + b'"}',
    b"\x80\x04K\x01.", b"rewards\n1\n2\n", b'{"rewards": [1, 2', b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
]  # fmt: skip


def ask(remote):
    """What comes of it: two finite numbers, or one line."""
    try:
        values = Reward("remote", [(1.0, "remote", remote)])(IMAGES, PROMPTS)
    except InputError as error:
        one_line(error)
        return False
    assert values.shape == (2,) and all(map(math.isfinite, values.tolist()))
    return True


def test_replies():
    spoilt = [text.encode() for text in json_variants(GOOD, 5, 100)]
    leaves = [json.dumps({"rewards": leaf}).encode() for leaf in LEAVES]
    leaves += [json.dumps({"rewards": [1.0, leaf]}).encode() for leaf in LEAVES]
    replies = [*OUT_OF_PLACE, *spoilt, *leaves, *byte_variants(json.dumps(GOOD).encode(), 6, 60)]
    remaining = iter(replies)
    with answering(lambda request: (200, next(remaining))) as url:
        remote = RemoteReward(url, retries=0, timeout=20)
        outcomes = [ask(remote) for _ in replies]
    assert len(replies) > 200 and not any(outcomes[: len(OUT_OF_PLACE) - 1])
    assert outcomes.count(False) > 150


@contextmanager
def saying(replies):
    """A server that says each of these bytes to one client, and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        for reply in replies:
            client, _ = listener.accept()
            with client:
                client.settimeout(5)
                try:
                    while not client.recv(65536).endswith(b"}"):
                        pass
                    client.sendall(reply)
                except OSError:
                    pass  # the client has left

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join()
        listener.close()


def test_replies_that_are_hardly_http():
    body = json.dumps(GOOD).encode()
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    good = (head % len(body)).encode() + body
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
    replies = [
        *byte_variants(good, 7, 60), *byte_variants(chunked % (len(body), body), 8, 40),
        b"SSH-2.0-OpenSSH\r\n", b"HTTP/9.9 200\r\n\r\n", b"HTTP/1.1 999 X\r\n\r\n", b"HTTP/1.1 -1 X\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9" + b"9" * 5000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}", b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 5000 + b"\r\n", b"HTTP/1.1 302 X\r\nLocation: \r\n\r\n",
        b"HTTP/1.1 302 X\r\nLocation: http://[\r\n\r\n", b"HTTP/1.1 204 X\r\n\r\n", b"HTTP/1.1 101 X\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 407 X\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\n\r\nx",
        b"HTTP/1.1 302 X\r\nLocation: " + b"h" * 60_000 + b"\r\n\r\n",
    ]  # fmt: skip
    with saying(replies) as url:
        remote = RemoteReward(url, retries=0, timeout=20)
        outcomes = [ask(remote) for _ in replies]
    assert len(replies) > 110 and outcomes.count(False) > 60


CHAT = json.loads(says("7")[1])
SAID = [
    "", " ", "seven", "7 8", "7/9", "1e999", "-1", "11", "1" * 5000, "NaN", "null", "[7]", '"7"', "{}", "\0", "7\0",
    '{"score": [7]}', '{"score": "7"}', '{"score": 1e999}', "[" * 100_000, '{"score":' * 10_000, "x" * 900_000,
    "<think>" + "7" * 1000, "```7", "```" * 10_000, "score" * 10_000, "\ud800", "7" + " " * 100_000 + "x",
]  # fmt: skip


def test_replies_of_a_judge():
    spoilt = [text.encode() for text in json_variants(CHAT, 9, 80)]
    good = json.dumps(CHAT).encode()
    replies = [
        *(says(text)[1] for text in SAID),
        *OUT_OF_PLACE,
        *spoilt,
        *byte_variants(good, 10, 60),
    ]
    current = [b""]
    with chatting(lambda body: (200, current[0])) as (url, _):
        judge = load_reward(f"vlm@{url}?model=m&retries=0&timeout=20&concurrency=2")
        outcomes = []
        for current[0] in replies:
            try:
                values = judge(IMAGES, PROMPTS)
            except InputError as error:
                one_line(error)
                outcomes.append(False)
            else:
                assert all(0 <= value <= 10 for value in values.tolist())
                outcomes.append(True)
    assert not any(outcomes[: len(SAID) + len(OUT_OF_PLACE) - 1])
    assert outcomes.count(False) > 100
