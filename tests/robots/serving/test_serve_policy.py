"""A policy object is served as `genpol serve` serves one by name."""

from __future__ import annotations

import threading

import pytest
import torch

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

from fake_servers import SHAPES, SPEC, Counter

from genpol.steering.compose import Composed
from genpol.steering.select import argmax
from genpol.steering.steered import Steered
from offline.critics.value import ValueFunction
from offline.errors import InputError
from robots.serving.client import RemotePolicy
from robots.serving.serve_policy import observed, serve_policy

OBS = {"state": torch.tensor([[0.5, -1.0, 2.0]])}


class Locked(Counter):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Silent(Counter):
    """Does not say what it observes."""

    def __init__(self) -> None:
        super().__init__()
        del self.obs_shapes


def ask(server, obs=OBS):
    with RemotePolicy.connect(server.address) as robot:
        act = robot.sample(obs, 1, None)[0, 0]
        return robot.spec.unnormalize(act)


@pytest.mark.parametrize("policy", [Counter, Silent])
def test_the_answer_is_the_policys(policy):
    with serve_policy(policy(), port=0) as server:
        expected = SPEC.clip((OBS["state"] / 10).expand(2, 3))
        assert torch.allclose(ask(server), expected, atol=1e-6)


def test_each_client_has_its_own_episode():
    policy = Counter()
    with serve_policy(policy, port=0) as server:
        with RemotePolicy.connect(server.address) as one:
            for _ in range(3):
                one.commit(one.sample(OBS, 1, None)[:, 0])
        assert policy.committed == []
        assert torch.allclose(ask(server), SPEC.clip((OBS["state"] / 10).expand(2, 3)), atol=1e-6)


def test_a_steered_policy_is_served_with_what_its_parts_observe():
    value = ValueFunction(SPEC, {"state": (3,), "goal": (2,)}, hidden=(8,)).eval()
    steered = Steered(Counter(noise=0.3), value, 4, argmax(), check=False)
    assert observed(steered) == {"state": (3,), "goal": (2,)}
    assert observed(Composed([value, value], [1, 1])) == {"state": (3,), "goal": (2,)}
    assert observed(Steered(Silent(), value, 4, argmax())) is None
    with serve_policy(steered, port=0) as server:
        assert ask(server, OBS | {"goal": torch.zeros(1, 2)}).shape == (2, 3)
        with pytest.raises(InputError, match='has no "goal" of shape'):
            ask(server)


def test_what_cannot_be_copied_is_said_to_the_client():
    with serve_policy(Locked(), port=0) as server, pytest.raises(InputError):
        ask(server)


def test_keys_are_renamed():
    with serve_policy(Counter(), port=0, rename={"proprio": "state"}) as server:
        with RemotePolicy.connect(server.address, rename={"state": "proprio"}) as robot:
            assert robot.sample(OBS, 1, None).shape == (1, 1, 2, 3)
    assert SHAPES == {"state": (3,)}
