"""RemotePolicy: any openpi-protocol server as a policy, and one line for each thing that fails."""

from __future__ import annotations

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

from fake_servers import SHAPES, SPEC, Counter, OpenpiServer, numbered

from offline.errors import InputError, SpecError
from offline.types import Policy
from robots.serving.client import RemotePolicy
from robots.serving.observations import Observations
from robots.serving.serve import PolicyServer
from robots.serving.sessions import FEATURES, Limits, PolicySession

OBS = {"state": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "language": torch.zeros(2, 384)}
ENV_SPEC = SPEC.with_chunk(1)


@contextlib.contextmanager
def our_server(noise=0.0, **options):
    """A PolicyServer of Counters; yields it with the list of the policies it has made."""
    policies = []

    def make_session():
        policies.append(Counter(noise))
        return PolicySession(policies[-1], Observations(SHAPES), torch.Generator().manual_seed(7))

    ours = {"features": list(FEATURES), "obs_shapes": {"state": [3]}, "spec": SPEC.to_dict()}
    with PolicyServer(make_session, port=0, metadata={"genpol": ours}, **options) as server:
        yield server, policies


def test_an_openpi_server_is_asked_k_times_for_each_row():
    with OpenpiServer(numbered(sleep=0.02)) as server:
        with RemotePolicy.connect(
            server.url,
            env_spec=ENV_SPEC,
            prompt="push",
            rename={"state": "observation/state"},
            parallel=3,
        ) as policy:
            assert isinstance(policy, Policy) and policy.metadata == {"robot": "fake"}
            act = policy.sample(OBS, 5, None)
            # The chunk's length is the server's, known from its first answer.
            assert act.shape == (2, 5, 4, 3) and policy.spec.chunk == 4
            raw = policy.spec.unnormalize(act)
            assert sorted(raw[:, :, 0, 0].flatten().tolist()) == pytest.approx(
                [k / 10 for k in range(10)], abs=1e-6
            )
            for row in range(2):
                for k in range(5):  # proposals in the order of the answers
                    assert float(raw[row, k, 0, 0]) == pytest.approx(
                        policy.answers[row][k]["k"] / 10, abs=1e-6
                    )
    assert 2 <= server.most_at_once <= 3 and server.connections <= 3
    for message in server.messages:  # no batch axis, no embedding, none of our own keys
        assert message.keys() == {"observation/state", "prompt"} and message["prompt"] == "push"
        assert message["observation/state"].shape == (3,)
    states = sorted(message["observation/state"].tolist() for message in server.messages)
    assert states == [[1, 2, 3]] * 5 + [[4, 5, 6]] * 5


def test_longer_answers_are_cut_to_the_chunk_and_shorter_ones_refused():
    with OpenpiServer(numbered(chunk=4)) as server:
        with RemotePolicy.connect(server.url, env_spec=ENV_SPEC, chunk=3) as policy:
            assert policy.spec.chunk == 3 and policy.sample(OBS, 1, None).shape == (2, 1, 3, 3)
        with RemotePolicy.connect(server.url, env_spec=ENV_SPEC, chunk=5) as policy:
            with pytest.raises(InputError, match="H=4 actions, expected at least 5"):
                policy.sample(OBS, 1, None)


def test_action_as_a_key_and_single_actions():
    with OpenpiServer(lambda message: {"action": np.zeros(3)}) as server:
        with RemotePolicy.connect(server.url, env_spec=ENV_SPEC) as policy:
            assert policy.sample(OBS, 2, None).shape == (2, 2, 1, 3)


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        ({"actions": np.zeros((2, 7))}, SpecError, r"\(2, 7\), expected \(H, A=3\)"),
        ({"actions": np.full((2, 3), np.nan)}, InputError, "NaN"),
        ({"actions": "go left"}, InputError, "no numbers"),
        ({"logits": np.zeros(3)}, InputError, r"without \"actions\".*logits"),
    ],
)
def test_answers_that_do_not_fit(answer, kind, said):
    with OpenpiServer(lambda message: answer) as server:
        with RemotePolicy.connect(server.url, env_spec=ENV_SPEC) as policy:
            with pytest.raises(kind, match=said):
                policy.sample(OBS, 1, None)


def test_a_servers_traceback_becomes_one_line_and_the_next_request_reconnects():
    good = numbered()

    def infer(message):
        if message["state"][0] > 3:
            raise KeyError("observation/image")
        return good(message)

    with OpenpiServer(infer) as server:
        with RemotePolicy.connect(server.url, env_spec=ENV_SPEC, parallel=1) as policy:
            with pytest.raises(InputError) as caught:
                policy.sample({"state": torch.full((1, 3), 5.0)}, 1, None)
            assert str(caught.value).endswith("answered an error: KeyError: 'observation/image'")
            assert policy.sample({"state": torch.zeros(1, 3)}, 1, None).shape == (1, 1, 4, 3)
    assert server.connections == 2


def test_a_server_that_was_restarted_is_found_again():
    state = {"state": torch.zeros(1, 3)}
    with OpenpiServer(numbered()) as server:
        policy = RemotePolicy.connect(server.url, env_spec=ENV_SPEC, parallel=2)
        policy.sample(state, 4, None)
    with policy:
        with pytest.raises(InputError, match="no policy server at .* is it running"):
            policy.sample(state, 4, None)
        with OpenpiServer(numbered(), port=server.port):
            assert policy.sample(state, 4, None).shape == (1, 4, 4, 3)


def test_a_deadline_returns_what_has_arrived_and_leaves_no_stale_answer():
    def infer(message):
        time.sleep(0.1)
        return {"actions": np.full((1, 3), message["state"][0])}

    with OpenpiServer(infer) as server:
        with RemotePolicy.connect(
            server.url, env_spec=ENV_SPEC, parallel=2, deadline=0.25
        ) as policy:
            for value in (0.25, 0.5):
                act = policy.sample({"state": torch.full((1, 3), value)}, 16, None)
                assert 1 <= act.shape[1] <= 6 and len(policy.answers[0]) == act.shape[1]
                assert (policy.spec.unnormalize(act)[..., 0] - value).abs().max() < 1e-6
        with RemotePolicy.connect(
            server.url, env_spec=ENV_SPEC, parallel=2, deadline=0.001
        ) as policy:  # too short for any: waits for the first
            assert policy.sample({"state": torch.zeros(1, 3)}, 4, None).shape[1] >= 1


def test_what_does_not_answer_is_one_line():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        with pytest.raises(InputError, match="no policy server at .*refused"):
            RemotePolicy.connect(f"ws://127.0.0.1:{port}", env_spec=ENV_SPEC)
        listening.listen()  # accepts, and says nothing
        with pytest.raises(InputError, match="did not answer within 0.2 s"):
            RemotePolicy.connect(f"ws://127.0.0.1:{port}", env_spec=ENV_SPEC, timeout=0.2)
    for url in ("http://localhost:8000", "ws://", "localhost:8000"):
        with pytest.raises(InputError, match="expected ws://host:port"):
            RemotePolicy.connect(url, env_spec=ENV_SPEC)
    with pytest.raises(InputError, match="ws://localhost:notaport"):
        RemotePolicy.connect("ws://localhost:notaport", env_spec=ENV_SPEC)
    with OpenpiServer(lambda message: time.sleep(1) or {}) as server:
        with RemotePolicy.connect(server.url, env_spec=ENV_SPEC, timeout=0.2) as policy:
            with pytest.raises(InputError, match="did not answer within 0.2 s"):
                policy.sample(OBS, 1, None)
        with pytest.raises(InputError, match="name the environment"):
            RemotePolicy.connect(server.url)


def test_api_key_in_the_environment(monkeypatch):
    with our_server(api_key="secret") as (server, _):
        with pytest.raises(InputError, match="refused a client without an API key .HTTP 401"):
            RemotePolicy.connect(server.address)
        with pytest.raises(InputError, match="refused the API key"):
            RemotePolicy.connect(server.address, api_key="wrong")
        RemotePolicy.connect(server.address, api_key="secret").close()
        monkeypatch.setenv("GENPOL_UPSTREAM_API_KEY", "secret")
        RemotePolicy.connect(server.address).close()


def test_our_own_server_is_asked_once_and_the_policy_is_the_same_as_at_home():
    home = Counter(noise=0.1)
    with our_server(noise=0.1) as (server, policies):
        with RemotePolicy.connect(server.address, parallel=2) as policy:
            assert policy.spec == SPEC
            act = policy.sample(OBS, 6, torch.Generator().manual_seed(3))
            again = policy.sample(OBS, 6, torch.Generator().manual_seed(3))
            other = policy.sample(OBS, 6, torch.Generator().manual_seed(4))
    assert act.shape == (2, 6, 2, 3)
    torch.testing.assert_close(act, again)
    assert (act - other).abs().max() > 0.01
    # Each row has a connection, whose policy was reset once, on connecting, and by the request.
    assert [p.resets for p in policies] == [2, 2]
    rng = torch.Generator().manual_seed(3)
    seeds = [int(torch.randint(2**62, (), generator=rng)) for _ in range(2)]
    for row, seed in enumerate(seeds):
        mine = {"state": OBS["state"][row : row + 1]}
        expected = home.sample(mine, 6, torch.Generator().manual_seed(seed))
        expected = SPEC.normalize(SPEC.clip(SPEC.unnormalize(expected)))
        torch.testing.assert_close(act[row : row + 1], expected)


def test_our_own_server_follows_commit_keep_and_reset():
    with our_server() as (server, policies):
        with RemotePolicy.connect(server.address) as policy:
            first = policy.sample(OBS, 2, None)
            assert [len(p.committed) for p in policies] == [0, 0]
            executed = first[:, 0, :1]
            policy.commit(executed)
            second = policy.sample(OBS, 2, None)
            for row, remote in enumerate(policies):
                (told,) = remote.committed
                torch.testing.assert_close(SPEC.normalize(told), executed[row : row + 1])
            torch.testing.assert_close(
                SPEC.unnormalize(second), SPEC.unnormalize(first) + 0.01, atol=1e-5, rtol=0
            )
            policy.commit(second[:, 0])
            policy.keep(torch.tensor([1]))
            policy.sample({"state": OBS["state"][1:]}, 2, None)
            assert [len(p.committed) for p in policies] == [1, 2]
            policy.reset()
            policy.sample({"state": OBS["state"][1:]}, 2, None)
            assert len(policies[1].committed) == 0


def test_states_of_no_episode_share_a_few_connections():
    many = {"state": torch.arange(40.0).reshape(40, 1).expand(40, 3) / 100}
    with our_server(max_connections=3) as (server, policies):
        with RemotePolicy.connect(server.address, parallel=2) as policy:
            first = policy.sample_anew(many, 2, torch.Generator().manual_seed(0))
            policy.commit(first[:, 0])
            again = policy.sample_anew(many, 2, torch.Generator().manual_seed(0))
            assert len(policies) <= 2
            torch.testing.assert_close(again, first)  # nothing was remembered
            two = {"state": many["state"][:2]}
            torch.testing.assert_close(
                policy.sample(two, 2, torch.Generator().manual_seed(0)), first[:2]
            )


def test_a_server_that_is_full_is_one_line():
    with our_server(max_connections=1) as (server, _):
        with RemotePolicy.connect(server.address):
            with pytest.raises(InputError, match="raise --max-connections of genpol serve"):
                RemotePolicy.connect(server.address)


def test_a_rate_limit_is_waited_for():
    state = {"state": torch.zeros(1, 3)}
    ours = {"features": list(FEATURES), "obs_shapes": {"state": [3]}, "spec": SPEC.to_dict()}

    def session():
        limits = Limits(samples_per_second=40)
        return PolicySession(Counter(), Observations(SHAPES), torch.Generator(), limits)

    with PolicyServer(session, port=0, metadata={"genpol": ours}) as server:
        with RemotePolicy.connect(server.address) as policy:
            policy.sample(state, 44, None)
            started = time.perf_counter()
            with pytest.warns(UserWarning, match="limits the rate of requests"):
                assert policy.sample(state, 1, None).shape == (1, 1, 2, 3)
            assert 0.05 < time.perf_counter() - started < 2
        with RemotePolicy.connect(server.address, timeout=0.5) as policy:
            policy.sample(state, 400, None)
            with pytest.raises(InputError, match="more than 40 samples per second; wait 9"):
                policy.sample(state, 1, None)  # not within the time-out


def test_redirects_are_not_followed():
    with OpenpiServer(numbered()) as other, socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"ws://127.0.0.1:{listening.getsockname()[1]}"

        def send_elsewhere():
            with listening.accept()[0] as client:
                client.recv(10_000)
                answer = f"HTTP/1.1 302 Found\r\nLocation: {other.url}\r\nContent-Length: 0\r\n\r\n"
                client.sendall(answer.encode())

        with ThreadPoolExecutor(1) as thread:
            thread.submit(send_elsewhere)
            with pytest.raises(InputError, match="sends clients to another address"):
                RemotePolicy.connect(url, env_spec=ENV_SPEC)
    assert other.connections == 0


def test_a_time_out_is_a_time():
    for timeout in (0, -1, float("nan"), float("inf"), 1e300):
        with pytest.raises(InputError, match="time-out"):
            RemotePolicy.connect("ws://127.0.0.1:1", env_spec=ENV_SPEC, timeout=timeout)
