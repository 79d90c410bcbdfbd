"""The policy server, driven by the real openpi client wherever one can."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch

pytest.importorskip("websockets")
pytest.importorskip("msgpack")
openpi = pytest.importorskip("openpi_client.websocket_client_policy")

from fake_servers import SHAPES, SPEC, Counter
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from offline.errors import InputError
from robots.serving.observations import Observations
from robots.serving.serve import PolicyServer, is_loopback
from robots.serving.sessions import PolicySession
from robots.serving.wire import pack, unpack

STATE = np.array([1.0, 2.0, 3.0])


def sessions(made=None, shapes=SHAPES, policy=Counter, limits=None, **options):
    """A `make_session`; the policies it makes are appended to `made`."""

    def make():
        policies = [] if made is None else made
        policies.append(policy())
        generator = torch.Generator().manual_seed(len(policies))
        return PolicySession(policies[-1], Observations(shapes, **options), generator, limits)

    return make


def client(server, **options):
    return openpi.WebsocketClientPolicy("127.0.0.1", int(server.address.split(":")[-1]), **options)


def hang_up(*clients):
    for one in clients:
        one._ws.close()


def killed_midway(server):
    """A client that dies in the middle of a frame: header says 1000 bytes, 10 come, then a RST."""
    with connect(server.address, compression=None) as victim:
        victim.recv()
        victim.socket.sendall(b"\x82\xfe\x03\xe8" + bytes(4) + b"x" * 10)
        linger = (1).to_bytes(4, "little") + bytes(4)
        victim.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        victim.socket.close()


@pytest.mark.parametrize("asked", [2, None])
def test_policies_compute_in_the_threads_that_the_server_is_told(asked):
    """A new thread of Python would start with all processors for its matrix products."""
    counts = []

    class Counting(Counter):
        def sample(self, obs, n, generator=None):
            counts.append(threads_known())
            return super().sample(obs, n, generator)

    def threads_known():
        """Those that this thread was given, not those that asking gives it."""
        return used.get(threading.get_ident())

    used = {}
    real, here = torch.set_num_threads, torch.get_num_threads()

    def noted(count):
        used[threading.get_ident()] = count
        real(count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", noted)
        with PolicyServer(sessions(policy=Counting), port=0, threads=asked) as server:
            robot = client(server)
            robot.infer({"state": STATE})
            hang_up(robot)
    torch.set_num_threads(here)
    assert counts == [asked or here]


def test_a_thousand_requests_of_the_real_client_among_accidents():
    made = []
    metadata = {"robot": "toy", "reset_pose": np.zeros(3)}
    with PolicyServer(sessions(made), port=0, metadata=metadata) as server:
        robot = client(server)
        assert robot.get_server_metadata()["robot"] == "toy"
        for step in range(1000):
            if step == 300:
                killed_midway(server)
            if step == 500:
                robot._ws.send(b"\xc1 this is no msgpack")
                assert "malformed msgpack" in robot._ws.recv()
            if step == 600:
                with pytest.raises(RuntimeError, match='has no "state"'):
                    robot.infer({"stat": STATE})
            answer = robot.infer({"state": STATE, "prompt": "unused"})
            assert answer["actions"].shape == (2, 3) and answer["actions"].dtype == np.float32
            # In the environment's units, clipped to its bounds, with this client's own history.
            expected = SPEC.clip(np.tile(STATE / 10 + step / 100, (2, 1)))
            np.testing.assert_allclose(answer["actions"], expected, atol=1e-5)
            assert answer["server_timing"]["infer_ms"] >= 0
            assert ("prev_total_ms" in answer["server_timing"]) == (step > 0)
        hang_up(robot)
    assert len(made[0].committed) == 999 and len(made) == 2


def test_clients_at_once_have_their_own_episodes():
    made, failures = [], []
    with PolicyServer(sessions(made), port=0) as server:

        def drive(number):
            robot = client(server)
            for step in range(50):
                raw = robot.infer({"state": STATE})["actions"][0, 0]
                if abs(raw - (0.1 + step / 100)) > 1e-5:
                    failures.append((number, step, raw))
            hang_up(robot)

        threads = [threading.Thread(target=drive, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == [] and len(made) == 4


def test_reset_executed_num_samples_and_seed():
    made = []
    with PolicyServer(sessions(made, policy=lambda: Counter(noise=0.1)), port=0) as server:
        robot = client(server)
        robot.infer({"state": STATE})
        first = robot.infer({"state": STATE})["actions"]
        assert len(made[0].committed) == 1  # the second is committed when the third comes
        robot.infer({"state": STATE, "executed": first[:1]})
        np.testing.assert_allclose(made[0].committed[1].numpy(), first[None, :1], atol=1e-6)
        assert robot.infer({"reset": True})["reset"] is True
        assert made[0].committed == []
        robot.infer({"state": STATE})
        robot.infer({"state": STATE, "reset": True})
        assert made[0].committed == [] and made[0].resets == 3
        many = [
            robot.infer({"state": STATE, "num_samples": 5, "seed": seed})["actions"]
            for seed in (1, 1, 2)
        ]
        assert many[0].shape == (5, 2, 3)
        np.testing.assert_array_equal(many[0], many[1])
        assert np.abs(many[0] - many[2]).max() > 0.01
        assert len(made[0].committed) == 1  # proposals are not taken for executed
        for wrong in (
            {"num_samples": 0}, {"num_samples": 10**6}, {"num_samples": True}, {"seed": "x"},
            {"seed": 2**63}, {"seed": -1}, {"seed": 1.5}, {"reset": np.ones(3)}, {"reset": "no"},
            {"executed": np.zeros((3, 3))}, {"executed": [[1, 2], [3]]}, {"executed": "x"},
        ):  # fmt: skip
            with pytest.raises(RuntimeError, match="expected"):
                robot.infer({"state": STATE, **wrong})
        with pytest.raises(RuntimeError, match='"executed" has shape'):
            robot.infer({"state": STATE, "executed": np.zeros((1, 7))})
        hang_up(robot)


def test_api_key_and_health():
    with PolicyServer(sessions(), port=0, api_key="secret") as server:
        for key in (None, "wrong", "secret2"):
            with pytest.raises(InvalidStatus) as refused:
                client(server, api_key=key)
            assert refused.value.response.status_code == 401
        robot = client(server, api_key="secret")
        assert robot.infer({"state": STATE})["actions"].shape == (2, 3)
        hang_up(robot)
        health = server.address.replace("ws", "http") + "/healthz"
        assert urllib.request.urlopen(health).read() == b"OK\n"


def test_browsers_are_refused_without_an_api_key():
    with PolicyServer(sessions(), port=0) as server:
        with pytest.raises(InvalidStatus) as refused:
            connect(server.address, origin="https://example.org")
        assert refused.value.response.status_code == 403


def test_too_big_messages_are_answered():
    with PolicyServer(sessions(), port=0, max_message_bytes=10_000) as server:
        robot = client(server)
        with pytest.raises(RuntimeError, match="limit is 10000.*--max-message-mb"):
            robot.infer({"state": np.zeros(2000)})
        assert robot.infer({"state": STATE})["actions"].shape == (2, 3)
        with pytest.raises(ConnectionClosed, match="1009"):  # not even read
            robot.infer({"state": np.zeros(200_000)})
        robot = client(server)
        assert robot.infer({"state": STATE})["actions"].shape == (2, 3)
        hang_up(robot)


def test_too_many_requests_are_answered():
    with PolicyServer(sessions(), port=0, rate_limit=20) as server:
        robot = client(server)
        refused = 0
        for _ in range(60):
            try:
                robot.infer({"state": STATE})
            except RuntimeError as error:
                assert "more than 20 requests per second; wait" in str(error)
                refused += 1
        assert refused > 20
        time.sleep(0.2)
        robot.infer({"state": STATE})
        hang_up(robot)


def test_too_many_clients_are_refused():
    with PolicyServer(sessions(), port=0, max_connections=1) as server:
        robot = client(server)
        with pytest.raises(InvalidStatus) as refused:
            client(server)
        assert refused.value.response.status_code == 503
        hang_up(robot)


def test_a_policy_that_fails_answers_and_goes_on(caplog):
    class Flawed(Counter):
        def sample(self, obs, n, generator):
            if obs["state"][0, 0] < 0:
                raise RuntimeError("shape mismatch\nsecond line")
            return super().sample(obs, n, generator) * obs["state"][0, 2]

    with PolicyServer(sessions(policy=Flawed), port=0) as server:
        robot = client(server)
        with pytest.raises(RuntimeError, match="internal error: RuntimeError: shape mismatch sec"):
            robot.infer({"state": -STATE})
        with pytest.raises(RuntimeError, match="NaN or infinite actions"):
            robot.infer({"state": np.array([1, 2, 1e38])})
        robot.infer({"state": STATE})
        for _ in range(50):
            with pytest.raises(RuntimeError, match="internal error"):
                robot.infer({"state": -STATE})
        hang_up(robot)
    # Each time a line, and the traceback once.
    assert caplog.text.count("the policy failed: RuntimeError: shape mismatch") == 51
    assert caplog.text.count("Traceback") == 1


def test_the_loop_stays_responsive_while_a_policy_computes():
    entered, leave = threading.Event(), threading.Event()

    class Slow(Counter):
        def sample(self, obs, n, generator):
            entered.set()
            assert leave.wait(60)
            return super().sample(obs, n, generator)

    with PolicyServer(sessions(policy=Slow), port=0) as server:
        robot = client(server)
        asking = threading.Thread(target=robot.infer, args=[{"state": STATE}])
        asking.start()
        assert entered.wait(60)
        health = server.address.replace("ws", "http") + "/healthz"
        assert urllib.request.urlopen(health, timeout=60).read() == b"OK\n"
        leave.set()
        asking.join()
        hang_up(robot)


def test_text_frames_and_lists_are_answered():
    with PolicyServer(sessions(), port=0) as server:
        with connect(server.address, compression=None) as raw:
            unpack(raw.recv())
            raw.send(json.dumps({"state": [1, 2, 3]}))
            assert "expected a binary msgpack frame" in raw.recv()
            raw.send(pack([1, 2, 3]))
            assert "expected a map" in raw.recv()
            raw.send(pack({"state": STATE}))
            assert unpack(raw.recv())["actions"].shape == (2, 3)


def test_where_it_listens(caplog):
    with PolicyServer(sessions(), port=0) as server:
        assert server.address.startswith("ws://127.0.0.1:") and not caplog.records
        port = int(server.address.split(":")[-1])
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port} .*--port"):
            with PolicyServer(sessions(), port=port):
                pass
    for host in ("0.0.0.0", "", "::", "robot.lab"):
        with pytest.raises(InputError, match="--api-key-file, .GENPOL_API_KEY.*--insecure") as said:
            PolicyServer(sessions(), host=host, port=0)
        assert "\n" not in str(said.value)
    for key in ("", " key", "two\nlines", "ключ"):
        with pytest.raises(InputError, match="API key is one line"):
            PolicyServer(sessions(), port=0, api_key=key)
    with PolicyServer(sessions(), host="0.0.0.0", port=0, api_key="k"):
        assert not caplog.records
    options = {"host": "0.0.0.0", "port": 0, "insecure": True}
    with caplog.at_level(logging.WARNING), PolicyServer(sessions(), **options):
        (record,) = caplog.records
        assert "asks for no API key" in record.getMessage() and "\n" not in record.getMessage()
    assert is_loopback("127.0.0.2") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("") and not is_loopback("robot.lab")


def test_leaving_closes_the_clients():
    with PolicyServer(sessions(), port=0) as server:
        robot = client(server)
    with pytest.raises(ConnectionClosed, match="1001"):
        robot.infer({"state": STATE})
