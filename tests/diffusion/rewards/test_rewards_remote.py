"""The HTTP reward client against small standard-library servers, and scripts/reward_server.py."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from diffusion.errors import InputError, RewardError
from diffusion.rewards import load_reward
from diffusion.rewards.remote import RemoteReward

torch.set_num_threads(1)

ROOT = Path(__file__).parents[3]
Answer = tuple[int, bytes]


@contextmanager
def running(server: HTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def answering(answer: Callable[[dict], Answer]) -> Iterator[str]:
    """A server that answers every POST by `answer(request)` -> (status, body)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, data = answer(json.loads(body))
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            try:
                self.wfile.write(data)
            except OSError:
                pass  # the client has left

        def log_message(self, *args) -> None:
            pass

    with running(HTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url


def numbers(*values) -> Answer:
    return 200, json.dumps({"rewards": list(values)}).encode()


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
    assert waits == [0.5, 1.0, 2.0]


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


# --------------------------------------------------------------------- scripts/reward_server.py


@pytest.fixture(scope="module")
def server_script():
    spec = importlib.util.spec_from_file_location(
        "reward_server", ROOT / "scripts/reward_server.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_server_scores_what_the_reward_itself_does(server_script) -> None:
    pixels = torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    batch = pixels.float() / 255
    local = load_reward("jpeg_incompressibility")
    with running(server_script.make_server(local)) as url:
        remote = load_reward(f"{url}?batch=2")
        assert torch.equal(remote(batch, prompts(5)), local(batch, prompts(5)))


def test_the_reference_server_listens_on_this_machine_only(server_script) -> None:
    server = server_script.make_server(load_reward("jpeg_incompressibility"))
    try:
        assert server.server_address[0] == "127.0.0.1"
    finally:
        server.server_close()


def test_the_reference_server_passes_a_rewards_error_on(server_script) -> None:
    bad = server_script.make_server(lambda images, prompts: 1 / 0)
    with running(bad) as url, pytest.raises(RewardError, match="422.*ZeroDivisionError"):
        load_reward(url)(images(2), prompts(2))


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        b'{"images": []}',
        b'{"images": [], "prompts": []}',
        b'{"images": ["AAAA"], "prompts": ["a", "b"]}',
        b'{"images": ["AAAA"], "prompts": ["a"]}',
        b'{"images": [3], "prompts": ["a"]}',
        b'{"images": ["\xc3\xa9"], "prompts": ["a"]}',
    ],
)
def test_the_reference_server_refuses_bad_requests(server_script, body: bytes) -> None:
    with running(server_script.make_server(lambda i, p: torch.zeros(len(p)))) as url:
        answer = requests.post(url, data=body, timeout=5)
        assert answer.status_code == 400 and answer.json()["error"]
        good = RemoteReward(url)(images(1), ["still up"])
    assert good.tolist() == [0]
