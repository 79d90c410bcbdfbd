"""The HTTP reward client against small standard-library servers."""

from __future__ import annotations

import base64
import gzip
import io
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from reward_servers import Answer, answering, numbers, running

from diffusion.errors import InputError, RewardError
from diffusion.rewards import load_reward
from diffusion.rewards.remote import RemoteReward

torch.set_num_threads(1)


def images(count: int) -> torch.Tensor:
    """Image k is all k/255."""
    return (torch.arange(count) / 255).view(-1, 1, 1, 1).expand(-1, 3, 4, 6).contiguous()


def prompts(count: int) -> list[str]:
    return [f"prompt {index} é" for index in range(count)]


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_batches_keep_images_prompts_and_order() -> None:
    sizes = []

    def answer(request: dict) -> Answer:
        sizes.append(len(request["images"]))
        rewards = []
        for text, prompt in zip(request["images"], request["prompts"], strict=True):
            picture = Image.open(io.BytesIO(base64.b64decode(text)))
            assert picture.format == "PNG" and picture.size == (6, 4) and picture.mode == "RGB"
            assert prompt.endswith(" é")
            rewards.append(float(np.asarray(picture).mean()) + 1000 * int(prompt.split()[1]))
        return numbers(*rewards)

    with answering(answer) as url:
        reward = load_reward(f"0.5*{url}/score?batch=3&retries=0")
        got = reward(images(8), prompts(8))
    assert sizes == [3, 3, 2]
    assert got.tolist() == [500.5 * index for index in range(8)]
    assert reward.labels == [f"{url}/score?batch=3&retries=0"]


def test_a_503_is_tried_again() -> None:
    calls = []

    def answer(request: dict) -> Answer:
        calls.append(1)
        return (503, b"warming up") if len(calls) == 1 else numbers(7)

    with answering(answer) as url:
        assert RemoteReward(url, backoff=0.01)(images(1), prompts(1)).tolist() == [7]
    assert len(calls) == 2


def test_a_server_that_stays_broken_is_given_up() -> None:
    calls = []

    def answer(request: dict) -> Answer:
        calls.append(1)
        return 500, b"out of memory"

    with answering(answer) as url, pytest.raises(RewardError) as caught:
        RemoteReward(url, retries=2, backoff=0.01)(images(1), prompts(1))
    assert len(calls) == 3
    assert "failed 3 times: HTTP 500 out of memory" in str(caught.value)


def test_waits_between_tries_double(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(RewardError):
        RemoteReward(f"http://127.0.0.1:{unused_port()}")(images(1), prompts(1))
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, b"no such page"), "refused the batch of 2 that begins with prompt"),
        ((422, b'{"error": "too dark"}'), "too dark"),
        ((200, b"<html>hello</html>"), "<html>"),
        ((200, b'{"scores": [1, 2]}'), "expected"),
        ((200, b"[1, 2]"), "expected"),
        ((200, b'{"rewards": "12"}'), "expected"),
        ((200, b'{"rewards": [[1], [2]]}'), "expected"),
        ((200, b"\x80\x04K\x01."), "expected"),
        (numbers(1), "returned 1 rewards"),
        (numbers(1, 2, 3), "returned 3 rewards"),
    ],
)
def test_unusable_answers_are_errors_at_once(answer: Answer, said: str) -> None:
    calls = []

    def count(request: dict) -> Answer:
        calls.append(1)
        return answer

    with answering(count) as url, pytest.raises(RewardError) as caught:
        RemoteReward(url, backoff=0.01)(images(2), prompts(2))
    assert len(calls) == 1
    assert said in str(caught.value) and url in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [b"NaN", b"null", b"Infinity"])
def test_nan_is_reported_with_its_prompt(value: bytes) -> None:
    body = b'{"rewards": [1.0, ' + value + b"]}"
    with answering(lambda request: (200, body)) as url:
        reward = load_reward(url)
        with pytest.raises(RewardError, match=r'returned (nan|inf) for prompt 2 of 2, "prompt 1'):
            reward(images(2), prompts(2))


def test_a_slow_server_is_one_line_and_not_asked_again() -> None:
    calls, release = [], threading.Event()

    def answer(request: dict) -> Answer:
        calls.append(1)
        release.wait(5)
        return numbers(1)

    with answering(answer) as url:
        start = time.monotonic()
        with pytest.raises(RewardError, match=r"within 0.2 s.*\?timeout="):
            load_reward(f"{url}?timeout=0.2")(images(1), prompts(1))
        assert time.monotonic() - start < 4
        release.set()
    assert len(calls) == 1


def test_a_server_that_is_down_is_noticed_when_loading() -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    with pytest.raises(InputError) as caught:
        load_reward(f"{url}?retries=1&backoff=0.01")
    assert f"{url} failed 2 times: Connection refused" in str(caught.value)
    assert "host and port" in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_goes_down_is_not_searched_for_a_guilty_prompt() -> None:
    with answering(lambda request: numbers(0)) as url:
        reward = load_reward(f"{url}?retries=0")
    with pytest.raises(RewardError, match="failed 1 time: "):
        reward(images(3), prompts(3))


def test_other_query_parameters_reach_the_server() -> None:
    from diffusion.rewards.remote import load_remote

    with answering(lambda request: numbers(0)) as url:
        remote = load_remote(f"{url}/s?model=a&batch=2&timeout=1.5&retries=4")
    assert remote.url == f"{url}/s?model=a"
    assert (remote.batch, remote.timeout, remote.retries) == (2, 1.5, 4)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://host:1?batch=0", "batch of at least 1"),
        ("http://host:1?batch=2.5", "batch of at least 1"),
        ("http://host:1?timeout=nan", "timeout"),
        ("http://host:1?retries=-1", "retries of at least 0"),
        ("http://host:99999", "no address"),
        ("http://", "names no host"),
    ],
)
def test_addresses_that_cannot_be(url: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_reward(url)
    assert said in str(caught.value)


# ------------------------------------------------------------------------ servers not to be trusted


@contextmanager
def raw(*pieces: bytes, pause: float = 0.0, seen: list | None = None) -> Iterator[str]:
    """A server that reads a request and sends `pieces`, with pauses; the last one for ever."""
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.02)

    def serve(client: socket.socket) -> None:
        with client:
            client.settimeout(5)
            try:
                while b"\r\n\r\n" not in (data := client.recv(65536)) and data:
                    pass
                for piece in pieces:
                    client.sendall(piece)
                    stop.wait(pause)
                while pause and not stop.wait(pause):
                    client.sendall(pieces[-1])
            except OSError:
                if seen is not None:
                    seen.append("gone")

    def accept() -> None:
        while not stop.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=serve, args=(client,)).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        thread.join()
        listener.close()


def head(*lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"a"),
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        (head("Content-Length: 100000"), b" "),
        (head("Transfer-Encoding: chunked"), b"1\r\n \r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["header", "headers", "body", "chunks", "continue"],
)
def test_a_server_that_drips_meets_one_deadline(pieces) -> None:
    seen: list[str] = []
    with raw(*pieces, pause=0.05, seen=seen) as url:
        start = time.monotonic()
        with pytest.raises(RewardError, match="within 0.5 s"):
            RemoteReward(url, timeout=0.5)(images(1), prompts(1))
        assert time.monotonic() - start < 1.5
        deadline = time.monotonic() + 5
        while not seen and time.monotonic() < deadline:  # nor does the connection stay open
            time.sleep(0.01)
    assert seen == ["gone"]


def bomb() -> bytes:
    """200 MB in 200 kB."""
    packer, piece = zlib.compressobj(wbits=31), b" " * 1_000_000
    return b"".join(packer.compress(piece) for _ in range(200)) + packer.flush()


@pytest.mark.parametrize(
    ("lines", "body", "said"),
    [
        (("Content-Encoding: gzip",), bomb, "unpacks to more than 1,049,600 bytes"),
        ((), lambda: b" " * 50_000_000, "longer than 1,049,600 bytes"),
        (("Content-Encoding: br",), lambda: b"abc", 'packed as "br"'),
        (("Content-Encoding: gzip",), lambda: b"abc", "is no gzip"),
        (("Content-Encoding: gzip",), lambda: gzip.compress(b"[]" * 999)[:-9], "torn gzip"),
    ],
    ids=["gzip bomb", "long", "br", "no gzip", "torn"],
)
def test_answers_that_are_too_much(lines, body, said) -> None:
    packed = body()
    tracemalloc.start()
    with raw(head(*lines, f"Content-Length: {len(packed)}"), packed) as url:
        with pytest.raises(RewardError, match=said):
            RemoteReward(url)(images(1), prompts(1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_an_answer_may_be_packed() -> None:
    packed = gzip.compress(b'{"rewards": [2.5]}')
    with raw(head("Content-Encoding: gzip", f"Content-Length: {len(packed)}"), packed) as url:
        assert RemoteReward(url)(images(1), prompts(1)).tolist() == [2.5]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_prompts_and_images_are_not_sent_on(status: int) -> None:
    asked = []
    with answering(lambda request: (asked.append(request), numbers(1))[1]) as elsewhere:
        reply = f"HTTP/1.1 {status} Moved\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n"
        with raw(reply.encode()) as url, pytest.raises(RewardError) as caught:
            RemoteReward(url)(images(1), prompts(1))
    assert asked == [] and elsewhere in str(caught.value) and "not sent" in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b'{"rewards": [1e300]}', "1e.300 .*float32"),
        (b'{"rewards": [-4e38]}', "float32"),
        (b'{"rewards": [1' + b"0" * 5000 + b"]}", "float32|expected"),
        (b'{"rewards": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "expected"),
        (b'{"a": ' * 10_000 + b"1" + b"}" * 10_000, "expected"),
        (b'{"rewards": [true]}', "no number"),
        (b'{"rewards": ["1"]}', "no number"),
        (b'{"rewards": [{"a": 1}]}', "no number"),
        (b'{"rewards": [1], "rewards": 3}', "expected"),
        (b'{"rewards": [1' + b", 1" * 100_000 + b"]}", "returned 100001 rewards"),
    ],
)
def test_numbers_that_are_none(reply: bytes, said: str) -> None:
    with answering(lambda request: (200, reply)) as url:
        with pytest.raises(RewardError, match=said) as caught:
            RemoteReward(url)(images(1), prompts(1))
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_a_key_reaches_its_server_and_no_message(monkeypatch, tmp_path) -> None:
    from diffusion.rewards.remote import load_remote

    (tmp_path / "key").write_text("of-the-file\n")
    monkeypatch.setenv("MY_KEY", "of-the-variable")
    monkeypatch.delenv("NO_KEY", raising=False)
    heads: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heads.append(self.headers["Authorization"])
            self.send_response(401)
            self.end_headers()

        def log_message(self, *args) -> None:
            pass

    with running(HTTPServer(("127.0.0.1", 0), Handler)) as url:
        for query in ("key_env=MY_KEY", f"key_file={tmp_path}/key"):
            with pytest.raises(RewardError, match="key_env") as caught:
                load_remote(f"{url}?{query}")(images(1), prompts(1))
            assert "of-the" not in str(caught.value)
        for query in ("key_env=NO_KEY", "key_file=/nowhere", "key_file=/dev/null"):
            with pytest.raises(InputError, match="key|NO_KEY"):
                load_remote(f"{url}?{query}")
    assert heads == ["Bearer of-the-variable", "Bearer of-the-file"]


# ------------------------------------------------------------------- servers that fail for a while


@pytest.mark.parametrize(
    "trouble",
    ["dies", (503, b"busy"), (429, b""), (200, b"<html>starting</html>"), "hangs"],
    ids=str,
)
def test_a_server_that_comes_back_is_asked_again(trouble, monkeypatch, capsys) -> None:
    """It has answered before, so that time-outs and garbage may pass as well."""
    calls, release = [], threading.Event()

    def answer(request: dict) -> Answer:
        calls.append(1)
        if len(calls) in (2, 3) and trouble != "dies":
            if trouble == "hangs":
                release.wait(0.3)
                return 503, b""
            return trouble
        return numbers(len(calls))

    with answering(answer) as url:
        port = int(url.rpartition(":")[2])
        remote = RemoteReward(url, timeout=0.25 if trouble == "hangs" else 5, backoff=0.01)
        assert remote(images(1), prompts(1)).tolist() == [1]
        if trouble != "dies":
            assert remote(images(1), prompts(1)).tolist() == [4]
    if trouble == "dies":
        back = []

        def sleep(seconds: float) -> None:  # it comes back during the second wait
            if len(back) < 2:
                back.append(seconds)
            if len(back) == 2:
                revived.append(HTTPServer(("127.0.0.1", port), Reviving))
                back.append(0.0)
                threading.Thread(target=revived[0].handle_request).start()

        class Reviving(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                body = b'{"rewards": [9]}'
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args) -> None:
                pass

        revived: list[HTTPServer] = []
        monkeypatch.setattr(time, "sleep", sleep)
        assert remote(images(1), prompts(1)).tolist() == [9]
        revived[0].server_close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("warning: The reward server"), said


def test_a_server_that_stays_away_is_one_line_in_the_end(monkeypatch, capsys) -> None:
    with answering(lambda request: numbers(1)) as url:
        remote = RemoteReward(url, retries=3, backoff=0.0)
        remote(images(1), prompts(1))
    with pytest.raises(RewardError, match="failed 4 times: Connection refused. Start it"):
        remote(images(1), prompts(1))
    assert len(capsys.readouterr().err.splitlines()) == 1
