"""scripts/reward_server.py: what it scores, whom it refuses, and what a client may cost it."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")
import requests
import torch
from PIL import Image

from diffusion.errors import RewardError
from diffusion.rewards import load_reward
from diffusion.rewards.remote import RemoteReward

SCRIPT = Path(__file__).parents[1] / "scripts/reward_server.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("reward_server", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reward_server"] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    most = Image.MAX_IMAGE_PIXELS
    yield module
    Image.MAX_IMAGE_PIXELS = most


@contextmanager
def serving(script, reward, **limits):
    """The address of a server in a thread of this process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    started = script.start(reward, script.Limits(**limits))
    port, close = asyncio.run_coroutine_threadsafe(started, loop).result(10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def mean(images, prompts):
    return images.mean((1, 2, 3))


def png(width=4, height=4, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def claimed(width, height):
    """A PNG of `width` x `height` zeros in a few kilobytes."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return len(data).to_bytes(4, "big") + kind + data + check.to_bytes(4, "big")

    packer, row = zlib.compressobj(9), bytes(1 + width * 3)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))
    data = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


def post(url, document=None, **options):
    options.setdefault("timeout", 10)
    if document is not None:
        options["json"] = document
    return requests.post(url, **options)


def one(picture=None):
    return {"images": [picture or png()], "prompts": ["a"]}


def test_client_and_server_score_what_the_reward_itself_does(script):
    pixels = torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    batch, prompts = pixels.float() / 255, [f"prompt {i} é" for i in range(5)]
    local = load_reward("jpeg_incompressibility")
    with serving(script, local) as url:
        remote = load_reward(f"{url}?batch=2")
        assert torch.equal(remote(batch, prompts), local(batch, prompts))


def test_several_clients_at_once_are_scored_one_at_a_time(script):
    now, most, lock = [], [], threading.Lock()

    def reward(images, prompts):
        with lock:
            now.append(1)
            most.append(len(now))
        time.sleep(0.02)
        now.pop()
        return [float(prompts[0])]

    def ask(i):
        return RemoteReward(url)(torch.zeros(1, 3, 4, 4), [str(i)]).item()

    with serving(script, reward) as url, ThreadPoolExecutor(6) as clients:
        assert list(clients.map(ask, range(6))) == list(range(6))
    assert max(most) == 1


def test_a_failing_reward_is_passed_on(script):
    with serving(script, lambda images, prompts: 1 / 0) as url:
        with pytest.raises(RewardError, match="422.*ZeroDivisionError"):
            load_reward(url)(torch.zeros(2, 3, 4, 4), ["a", "b"])


@pytest.mark.parametrize(
    ("document", "status", "said"),
    [
        ([], 400, "body"),
        ({"images": []}, 400, "prompts"),
        ({"images": [], "prompts": []}, 400, "0 images"),
        ({"images": ["AAAA"], "prompts": ["a", "b"]}, 400, "1 images but 2 prompts"),
        ({"images": ["AAAA"], "prompts": ["a"]}, 400, "no base64 PNG"),
        ({"images": ["é"], "prompts": ["a"]}, 400, "no base64 PNG"),
        ({"images": [3], "prompts": ["a"]}, 400, "images.0"),
        ({"images": [png()], "prompts": [3]}, 400, "prompts.0"),
        ({"images": [png(), png(5)], "prompts": ["a", "b"]}, 400, "one size"),
        ({"images": [png()[:-40]], "prompts": ["a"]}, 400, "image"),
        ({"images": [png()] * 5, "prompts": ["a"] * 5}, 413, "at most 4"),
        ({"images": [png(60, 40)], "prompts": ["a"]}, 413, "2000 pixels"),
        ({"images": [png(30, 40)] * 2, "prompts": ["a", "b"]}, 413, "2000 pixels"),
    ],
)
def test_requests_that_are_refused(script, document, status, said):
    with serving(script, mean, images=4, pixels=2000) as url:
        answer = post(url, document)
        assert answer.status_code == status and said in answer.json()["error"]
        assert post(url, one()).json() == {"rewards": [0.0]}


def test_bodies_that_are_refused(script):
    with serving(script, mean, body_bytes=10_000) as url:
        for body in (b"", b"not json", b"[" * 5000, b'{"images": ' * 500, b"\xff\xfe", b"\0" * 99):
            answer = post(url, data=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400 and answer.json()["error"]
        assert post(url, data=b"{}").status_code == 415
        packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        assert post(url, data=b"{}", headers=packed).status_code == 415
        assert post(url, {"a": "x" * 20_000}).status_code == 413
        assert requests.get(url, timeout=5).status_code == 405
        assert post(url, one()).status_code == 200


def test_a_small_file_of_many_pixels_costs_no_memory(script):
    """40 million pixels in a few kilobytes, which are 120 MB when decoded, 480 MB as floats."""
    with serving(script, mean) as url:
        document = one(claimed(20_000, 2_000))
        tracemalloc.start()
        answer = post(url, document)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert answer.status_code == 413 and "pixels" in answer.json()["error"]
    assert peak < 20e6


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8765"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:8765"}, 200),
        ({"Host": "10.0.0.5"}, 200),
        ({"Host": "friend.example"}, 200),
    ],
)
def test_browsers_and_bent_names_are_refused(script, headers, status):
    with serving(script, mean, hosts={"localhost", "Friend.example"}) as url:
        assert post(url, one(), headers=headers).status_code == status


def test_a_key_is_asked_for(script, monkeypatch):
    monkeypatch.setenv("KEY", "right")
    monkeypatch.setenv("OTHER", "wrong")
    images = torch.zeros(1, 3, 4, 4)
    with serving(script, mean, key="right") as url:
        assert load_reward(f"{url}?key_env=KEY")(images, ["a"]).tolist() == [0.0]
        for query in ("", "?key_env=OTHER"):
            with pytest.raises(RewardError, match="401.*key"):
                load_reward(url + query)(images, ["a"])


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nX-A: b", b""),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99\r\n\r\n{",
            b"HTTP/1.1 408",
        ),
    ],
    ids=["nothing", "half the headers", "half the body"],
)
def test_slow_clients_are_dropped(script, sent, answer):
    with serving(script, mean, headers_seconds=0.3, body_seconds=0.3) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as client:
            start = time.monotonic()
            client.sendall(sent)
            got = b""
            try:
                got = client.recv(65536)
            except ConnectionResetError:
                pass
            assert got.startswith(answer) and bool(got) == bool(answer)
            assert 0.2 < time.monotonic() - start < 5
        assert post(url, one()).status_code == 200


def test_more_than_it_can_hold_are_told_to_come_back(script):
    busy, release = threading.Event(), threading.Event()

    def reward(images, prompts):
        busy.set()
        release.wait(10)
        return [1.0]

    with serving(script, reward, at_once=1) as url, ThreadPoolExecutor(1) as clients:
        first = clients.submit(post, url, one())
        assert busy.wait(10)
        second = post(url, one())
        assert second.status_code == 503 and "come back" in second.json()["error"]
        release.set()
        assert first.result().json() == {"rewards": [1.0]}
        assert post(url, one()).status_code == 200


def test_other_machines_are_served_with_a_key_only(script, monkeypatch, capsys):
    monkeypatch.setenv("REWARD_API_KEY", "")
    command = [str(SCRIPT), "jpeg_compressibility", "--host", "0.0.0.0"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        script.main()
    assert left.value.code == 2 and "--host 0.0.0.0 without a key" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_a_signal(number):
    command = [sys.executable, str(SCRIPT), "jpeg_compressibility", "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as server:
        try:
            url = server.stdout.readline().split()[-1]
            assert len(json.loads(post(url, one()).text)["rewards"]) == 1
            server.send_signal(number)
            assert server.wait(30) == 0 and server.stderr.read() == ""
        finally:
            server.kill()
