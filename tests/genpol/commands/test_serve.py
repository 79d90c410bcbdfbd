"""`genpol serve`: steered policies and the proxy, driven by the real openpi client."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("websockets")
pytest.importorskip("msgpack")
openpi = pytest.importorskip("openpi_client.websocket_client_policy")

from fake_servers import SHAPES, SPEC, OpenpiServer
from websockets.sync.client import connect

from genpol.commands.serve.command import make_server
from genpol.commands.serve.options import Serve
from genpol.policies.architecture import Architecture
from genpol.policies.policy import ChunkPolicy, load_policy
from genpol.steering.select import softmax
from genpol.steering.steered import Steered
from offline.critics.value import ValueFunction
from offline.errors import InputError

STATE = np.array([0.5, -1.0, 2.0], np.float32)
SMALL = Architecture(features=16, encoder_layers=1, width=16, layers=1, denoising_steps=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Untrained components, saved as the commands save them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("components")
    words = {**SHAPES, "language": (384,)}
    saved = {
        "value": ValueFunction(SPEC, SHAPES, env="metaworld/push-v3", hidden=(16,)),
        "other": ValueFunction(SPEC, SHAPES, hidden=(16,)),
        "wide": ValueFunction(SPEC, {"state": (4,)}, hidden=(16,)),
        "talks": ValueFunction(SPEC, words, hidden=(16,)),
        "clone": ChunkPolicy("gaussian", SPEC, SHAPES, architecture=SMALL),
    }
    for name, component in saved.items():
        component.eval().save(folder / name)
    return {name: str(folder / name) for name in saved}


def client(server, **options):
    return openpi.WebsocketClientPolicy("127.0.0.1", int(server.address.split(":")[-1]), **options)


def serving(**options):
    return make_server(Serve(port=0, **options))


class Upstream:
    """An `infer` that draws its chunk (H = 5) at random; every answer has a number."""

    def __init__(self):
        self.rng, self.lock, self.answers = np.random.default_rng(0), threading.Lock(), []
        self.slow = None  # an event that all but every fourth answer wait for

    def __call__(self, message):
        if "crash" in message:  # is no answer: one under way when the first fails may end late
            raise ValueError("no image")
        with self.lock:
            low, high = np.array(SPEC.low), np.array(SPEC.high)
            actions = self.rng.uniform(low, high, (5, 3))
            answer = {"actions": actions, "extra": {"number": len(self.answers)}}
            self.answers.append(answer)
        if self.slow and answer["extra"]["number"] % 4:
            assert self.slow.wait(60)
        return answer


def test_the_proxy_answers_a_thousand_requests_among_accidents(folders):
    upstream = Upstream()
    critic = ValueFunction.load(folders["value"])
    with OpenpiServer(upstream, metadata={"reset_pose": np.ones(3), "robot": "toy"}) as other:
        with serving(
            upstream=other.url,
            value=(folders["value"],),
            num_candidates=3,
            temperature=0.0,
            rename=("observation/state=state",),
        ) as proxy:
            robot = client(proxy)
            assert robot.get_server_metadata()["robot"] == "toy"
            for step in range(1000):
                if step == 200:  # killed in the middle of a frame of 1000 bytes
                    with connect(proxy.address, compression=None) as victim:
                        victim.recv()
                        victim.socket.sendall(b"\x82\xfe\x03\xe8" + bytes(4) + b"x" * 10)
                        linger = (1).to_bytes(4, "little") + bytes(4)
                        victim.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                        victim.socket.close()
                if step == 400:
                    robot._ws.send(b"\xc1")
                    assert "malformed msgpack" in robot._ws.recv()
                if step == 600:
                    with pytest.raises(RuntimeError, match='no "state".*--rename KEY=state'):
                        robot.infer({"observation/sate": STATE})
                if step == 800:
                    with pytest.raises(RuntimeError, match="answered an error: ValueError: no im"):
                        robot.infer({"observation/state": STATE, "crash": True})
                before = len(upstream.answers)
                answer = robot.infer({"observation/state": STATE, "prompt": "push"})
                mine = upstream.answers[before:]
                assert len(mine) == 3
                # As the other server gave it, with its own keys: of the five actions the two that
                # the value scores...
                chosen = upstream.answers[answer["extra"]["number"]]
                np.testing.assert_array_equal(answer["actions"], chosen["actions"][:2])
                if step % 50:
                    continue
                # ... and it is the one that the critic values most.
                raw = torch.tensor(np.stack([a["actions"][:2] for a in mine]), dtype=torch.float32)
                obs = {"state": torch.from_numpy(STATE)[None]}
                q = critic(obs, SPEC.normalize(raw)[None]).amin(0)[0]
                assert chosen is mine[int(q.argmax())]
                assert answer["steer"]["score"] == pytest.approx(float(q.max()), abs=1e-4)
                assert answer["server_timing"]["infer_ms"] > 0
            robot._ws.close()
    assert other.messages[0].keys() == {"observation/state", "prompt"}
    assert other.connections <= 3 * 3 + 1  # a pool for each robot, anew after the crash


def test_the_proxy_survives_its_upstream(folders):
    options = {"value": (folders["value"],), "num_candidates": 2}
    with OpenpiServer(Upstream()) as other:
        proxy = serving(upstream=other.url, **options)
    with proxy:
        robot = client(proxy)
        with pytest.raises(RuntimeError, match="no policy server at .* is it running"):
            robot.infer({"state": STATE})
        with OpenpiServer(Upstream(), port=other.port):
            assert robot.infer({"state": STATE})["actions"].shape == (2, 3)
        with pytest.raises(RuntimeError, match="no policy server at"):
            robot.infer({"state": STATE})
        with OpenpiServer(Upstream(), port=other.port):
            assert robot.infer({"state": STATE})["actions"].shape == (2, 3)
        robot._ws.close()
    with pytest.raises(InputError, match="no policy server at .*refused"):
        serving(upstream=other.url, **options)


def test_the_proxy_ranks_what_has_arrived_by_the_deadline(folders):
    upstream = Upstream()
    upstream.slow = threading.Event()
    with OpenpiServer(upstream) as other:
        with serving(
            policy=other.url,  # a server as --policy is the same
            value=(folders["value"],),
            num_candidates=4,
            deadline_ms=200,
        ) as proxy:
            robot = client(proxy)
            answer = robot.infer({"state": STATE})
            upstream.slow.set()  # only now do the others come
            assert answer["steer"]["num_candidates"] == 1 and answer["extra"]["number"] == 0
            robot._ws.close()


def test_a_steered_clone_is_the_same_as_at_home(folders):
    critic = ValueFunction.load(folders["value"])
    home = Steered(load_policy(folders["clone"]), critic, 6, softmax(0.5))
    with serving(
        policy=folders["clone"],
        value=(folders["value"],),
        num_candidates=6,
        temperature=0.5,
    ) as server:
        robot = client(server)
        announced = robot.get_server_metadata()["genpol"]
        assert announced["obs_shapes"] == {"state": [3]}
        for seed in range(5):
            answer = robot.infer({"state": STATE, "seed": seed})
            decision = home.decide(
                {"state": torch.from_numpy(STATE)[None]}, torch.Generator().manual_seed(seed)
            )
            expected = SPEC.clip(SPEC.unnormalize(decision.action[0]))
            np.testing.assert_allclose(answer["actions"], expected.numpy(), atol=1e-5)
            assert answer["steer"]["chosen"] == int(decision.chosen[0])
            assert answer["steer"]["num_candidates"] == 6
        # Another proxy before it: K proposals in one request, its episodes passed on.
        options = {"value": (folders["other"],), "num_candidates": 3}
        with serving(upstream=server.address, **options) as proxy:
            beyond = client(proxy)
            for _ in range(2):
                answer = beyond.infer({"state": STATE, "reset": True})
                assert answer["actions"].shape == (2, 3)
                assert answer["steer"]["num_candidates"] == 3 and answer["steer"]["spread"] > 0
            beyond._ws.close()
        robot._ws.close()


def test_noise_differs_from_client_to_client_but_not_from_run_to_run(folders):
    def first_actions():
        with serving(policy=folders["clone"], seed=3) as server:
            robots = [client(server), client(server)]
            actions = [robot.infer({"state": STATE})["actions"] for robot in robots]
            for robot in robots:
                robot._ws.close()
        return actions

    a, b = first_actions(), first_actions()
    assert np.abs(a[0] - a[1]).max() > 1e-3
    np.testing.assert_array_equal(a, b)


def test_several_values_and_black_boxes(folders, tmp_path, monkeypatch):
    (tmp_path / "toy_robot_policy.py").write_text(
        "import numpy as np\ndef act(obs):\n    return np.full((2, 3), obs['gain'] / 2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with serving(
        policy="toy_robot_policy:act",
        value=(folders["value"], folders["other"]),
        value_weights=(1.0, -0.5),
        num_candidates=2,
    ) as server:
        robot = client(server)
        answer = robot.infer({"state": STATE, "gain": 0.5})
        np.testing.assert_allclose(answer["actions"], 0.25, atol=1e-6)
        robot._ws.close()


def test_instructions_are_embedded(folders, monkeypatch):
    monkeypatch.setattr(
        "offline.networks.language.embedder", lambda model: lambda text: torch.ones(384)
    )
    with OpenpiServer(Upstream()) as other:
        with serving(upstream=other.url, value=(folders["talks"],), num_candidates=2) as proxy:
            robot = client(proxy)
            assert robot.infer({"state": STATE, "prompt": "push"})["actions"].shape == (2, 3)
            with pytest.raises(RuntimeError, match='no "prompt"'):
                robot.infer({"state": STATE})
            robot._ws.close()


def test_api_key_from_the_environment(folders, monkeypatch):
    monkeypatch.setenv("GENPOL_API_KEY", "secret")
    with serving(policy=folders["clone"]) as server:
        with pytest.raises(Exception, match="401"):
            client(server)
        client(server, api_key="secret")._ws.close()
    monkeypatch.setenv("GENPOL_API_KEY", "")  # is none
    with pytest.raises(InputError, match="--insecure"):
        serving(policy=folders["clone"], host="0.0.0.0")


def test_api_keys_from_files(folders, tmp_path, recwarn):
    file, theirs = tmp_path / "key", tmp_path / "theirs"
    for path, key in ((file, "s3cret key"), (theirs, "upstream")):
        path.write_text(key + "\n")
        path.chmod(0o600)
    with serving(policy=folders["clone"], api_key_file=str(theirs)) as server:
        options = {"upstream": server.address, "value": (folders["value"],), "num_candidates": 2}
        with pytest.raises(InputError, match="a client without an API key"):
            serving(**options)
        options["upstream_api_key_file"] = str(theirs)
        with serving(**options, api_key_file=str(file)) as proxy:
            for key in (None, "upstream"):
                with pytest.raises(Exception, match="401"):
                    client(proxy, api_key=key)
            robot = client(proxy, api_key="s3cret key")
            assert robot.infer({"state": STATE})["actions"].shape == (2, 3)
            robot._ws.close()
    assert not [one for one in recwarn.list if "key" in str(one.message)]
    file.chmod(0o644)
    with pytest.warns(UserWarning, match="every user of this machine can read .*chmod 600"):
        serving(policy=folders["clone"], api_key_file=str(file))
    for content in (b"", b" \n", b"two\nlines", b"\xff\x00", b"x" * 5000):
        file.write_bytes(content)
        with pytest.raises(InputError, match="--api-key-file: .*key holds no API key"):
            serving(policy=folders["clone"], api_key_file=str(file))


def test_a_key_on_the_command_line_is_warned_of(folders):
    with pytest.warns(UserWarning, match="--api-key in the list of processes.*-file") as caught:
        serving(policy=folders["clone"], api_key="secret", host="0.0.0.0")
    assert len(caught) == 1 and "secret" not in str(caught[0].message)
    assert "secret" not in repr(Serve(api_key="secret"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "either --policy or --upstream"),
        ({"policy": "clone", "upstream": "ws://x:1"}, "either --policy or --upstream"),
        ({"upstream": "ws://127.0.0.1:1"}, "--upstream needs --value"),
        ({"policy": "clone", "num_candidates": 4}, "--num-candidates needs --value"),
        ({"policy": "clone", "port": 70000}, "--port must be at most 65535"),
        ({"policy": "clone", "rate_limit": 0.0}, "--rate-limit must be above 0"),
        ({"policy": "clone", "max_connections": 0}, "--max-connections must be at least 1"),
        ({"policy": "clone", "max_samples": 0}, "--max-samples must be at least 1"),
        ({"policy": "clone", "samples_per_turn": 0}, "--samples-per-turn must be at least 1"),
        ({"policy": "clone", "timeout": float("inf")}, "--timeout must be"),
        ({"policy": "clone", "host": "0.0.0.0"}, "reaches 0.0.0.0 .*--api-key-file.*--insecure"),
        ({"policy": "clone", "api_key": "a", "api_key_file": "b"}, "either --api-key-file or --ap"),
        ({"policy": "clone", "api_key_file": "nowhere"}, "--api-key-file: cannot read nowhere .No"),
        ({"policy": "clone", "api_key_file": "."}, "--api-key-file: cannot read . .Is a dir"),
        ({"policy": "clone", "value": ("value",), "value_weights": (1.0, 2.0)}, "2 --value-w"),
        ({"policy": "clone", "value": ("wide",)}, r'"state" has shape .*same dataset'),
        ({"policy": "clone", "rename": ("state",)}, "--rename takes KEY=KEY"),
        ({"policy": "nowhere"}, "no folder"),
        ({"policy": "clone", "value": ("value",), "env": "metaworld/reach-v3"}, "trained for"),
    ],
)
def test_options_that_do_not_fit(folders, options, said):
    for name in ("policy", "value"):
        if name in options:
            given = options[name]
            options[name] = (
                folders.get(given, given)
                if isinstance(given, str)
                else tuple(folders[entry] for entry in given)
            )
    with pytest.raises(InputError, match=said) as caught:
        make_server(Serve(**{"port": 0, **options}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_is_the_end_of_a_server(number, folders):
    command = [sys.executable, "-m", "genpol", "serve", "--policy", folders["clone"], "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"serving on (ws://127.0.0.1:\d+)\n", line)
        assert found, line + process.stderr.read()
        with connect(found[1], compression=None) as robot:
            robot.recv()
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and out == "stopped\n" and err == ""
