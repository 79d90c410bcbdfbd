"""A robot that acts while its next answer is computed, by itself and against a server."""

from __future__ import annotations

import threading
from random import Random

import numpy as np
import pytest
import torch

from robots.serving.runner import ChunkRunner

OBS = {"state": np.zeros(3, np.float32)}


class Slow:
    """Answers six actions when it is let to: the k-th answer's are k, k + .1, ..., behind those
    that run."""

    def __init__(self, lookahead=2):
        self.messages, self.lookahead, self.plan = [], lookahead, None
        self.open = threading.Event()
        self.open.set()

    def __call__(self, message):
        assert self.open.wait(10)
        self.messages.append(message)
        number = len(self.messages)
        if message.pop("fails", False):
            raise RuntimeError("no camera")
        new = number + np.arange(6) / 10
        executed = message.get("executed")
        if self.plan is not None and executed is not None and message.get("running") != 0:
            running = self.plan[len(executed) :][: self.lookahead]
            new[: len(running)] = running
        self.plan = new
        return {"actions": new[:, None], "number": number}


def near(actions, expected):
    np.testing.assert_allclose(np.concatenate(actions), expected, atol=1e-6)


def executed(message):
    return np.round(message["executed"][:, 0].astype(float), 3).tolist()


def test_the_next_answer_is_asked_for_while_the_last_runs():
    server = Slow()
    runner = ChunkRunner(server, 2)
    near([runner.act(OBS) for _ in range(4)], [1, 1.1, 1.2, 1.3])
    server.open.clear()  # from here on nothing is answered
    near([runner.act(OBS | {"now": True}) for _ in range(2)], [1.4, 1.5])
    server.open.set()
    near([runner.act(OBS) for _ in range(4)], [2.2, 2.3, 2.4, 2.5])
    assert [message.get("reset") for message in server.messages[:2]] == [True, None]
    assert executed(server.messages[1]) == [1, 1.1, 1.2, 1.3] and "now" in server.messages[1]
    near([runner.act(OBS)], [3.2])
    assert executed(server.messages[2]) == [1.4, 1.5, 2.2, 2.3]
    assert runner.answer["number"] == 3
    runner.close()


def test_without_a_lookahead_it_waits_for_each_answer():
    server = Slow(lookahead=0)
    runner = ChunkRunner(server, 0)
    near([runner.act(OBS) for _ in range(8)], [1, 1.1, 1.2, 1.3, 1.4, 1.5, 2, 2.1])
    assert executed(server.messages[1]) == [1, 1.1, 1.2, 1.3, 1.4, 1.5]
    runner.close()


def test_what_was_really_done_is_told():
    server = Slow()
    runner = ChunkRunner(server, 2)
    for _ in range(4):
        runner.act(OBS)
        runner.did(np.array([9.0]))
    for _ in range(3):
        runner.act(OBS)
    assert executed(server.messages[1]) == [9, 9, 9, 9]
    runner.close()


@pytest.mark.parametrize(("before", "done"), [(3, [1, 1.1, 1.2]), (5, [1.4])])
def test_a_robot_that_stops_begins_anew(before, done):
    """In the middle of an answer, and while the next one is computed."""
    server = Slow()
    runner = ChunkRunner(server, 2)
    for _ in range(before):
        runner.act(OBS)
    runner.stop()
    runner.stop()  # twice is once
    number = float(runner.act(OBS)[0])
    assert number == len(server.messages)  # the first action of a new answer
    assert executed(server.messages[-1]) == done and server.messages[-1]["running"] == 0
    runner.act(OBS)
    assert "reset" not in server.messages[-1]
    runner.close()


def test_a_robot_that_stops_at_once_has_done_nothing():
    server = Slow()
    runner = ChunkRunner(server, 2)
    for _ in range(5):
        runner.act(OBS)
    runner.stop()
    runner.act(OBS)
    runner.stop()
    runner.stop()
    runner.act(OBS)
    assert executed(server.messages[-1]) == [3.0]
    runner.close()


def test_an_episode_ends_and_its_end_is_told_at_once():
    server = Slow()
    runner = ChunkRunner(server, 2)
    runner.reset()  # before the first
    for _ in range(3):
        runner.act(OBS)
    runner.reset(success=True)
    number = float(runner.act(OBS)[0])
    assert number == 3 and server.messages[2]["reset"] is True
    assert "state" not in server.messages[1] and server.messages[1]["success"] is True
    assert executed(server.messages[1]) == [1, 1.1, 1.2]
    runner.reset()
    runner.act(OBS)
    assert server.messages[3]["reset"] is True and executed(server.messages[3]) == [3]
    runner.close()


def test_a_failure_is_raised_when_nothing_is_left_and_the_next_call_asks_again():
    server = Slow()
    runner = ChunkRunner(server, 2)
    for _ in range(4):
        runner.act(OBS)
    near([runner.act(OBS | {"fails": True}), runner.act(OBS)], [1.4, 1.5])
    with pytest.raises(RuntimeError, match="no camera"):
        runner.act(OBS)
    near([runner.act(OBS)], [3])
    # What the failed message said is said again, and what was done since.
    assert executed(server.messages[2]) == [1, 1.1, 1.2, 1.3, 1.4, 1.5]
    assert server.messages[2]["running"] == 0
    runner.close()
    fresh = ChunkRunner(server, 2)
    with pytest.raises(RuntimeError):
        fresh.act(OBS | {"fails": True})
    near([fresh.act(OBS)], [5])
    assert server.messages[4]["reset"] is True  # which had not been heard
    fresh.close()


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="lookahead of at least 0, received -1"):
        ChunkRunner(Slow(), -1)
    lengths = iter((4, 2))
    short = ChunkRunner(lambda message: {"actions": np.zeros((next(lengths), 1))}, 2)
    for _ in range(4):
        short.act(OBS)
    with pytest.raises(ValueError, match="2 actions ran .* it has 2: is this lookahead the server"):
        short.act(OBS)
    short.close()


class Logged:
    """A policy of six actions that remembers what it was told, in whichever copy."""

    told: list[float] = []
    obs_shapes = {"state": (3,)}

    def __init__(self):
        from fake_servers import SPEC

        self.spec, self.count = SPEC.with_chunk(6), 0

    def reset(self):
        Logged.told.append("reset")

    def sample(self, obs, n, generator):
        self.count += 1
        if obs["state"][0, 0] < 0:
            raise RuntimeError("the policy fails")
        raw = torch.rand(1, n, 6, 3, generator=generator) * 0.9
        return self.spec.normalize(raw)

    def commit(self, act):
        Logged.told += [round(x, 4) for x in self.spec.unnormalize(act)[0, :, 0].tolist()]

    def keep(self, rows):
        raise AssertionError


@pytest.mark.parametrize("lookahead", [0, 1, 3])
def test_the_policy_is_told_just_what_the_robot_did(lookahead):
    """Through the openpi client, with stops, resets, other actions, and messages and decisions
    that fail, all at random."""
    pytest.importorskip("websockets")
    client = pytest.importorskip("openpi_client.websocket_client_policy")
    from genpol.steering.overlap import Overlap, overlapping
    from robots.serving.serve_policy import serve_policy

    overlap = Overlap(plan=6, execute=6 - lookahead, lookahead=lookahead)
    policy = overlapping(Logged(), overlap if lookahead else None)
    random, did = Random(lookahead), [[]]
    with serve_policy(policy, port=0, rate_limit=1e6) as server:
        robot = client.WebsocketClientPolicy("127.0.0.1", int(server.address.split(":")[-1]))
        ours = robot.get_server_metadata()["genpol"]
        assert ours.get("lookahead", 0) == lookahead
        Logged.told.clear()
        runner = ChunkRunner(robot.infer, lookahead)
        for _ in range(400):
            chance = random.random()
            obs = dict(OBS)
            if chance < 0.05:
                obs = {"state": np.full(3, -1.0, np.float32)}  # the policy fails, if it is asked
            elif chance < 0.1:
                obs = {"sate": OBS["state"]}  # cannot be used, if it is sent
            try:
                action = runner.act(obs)
            except RuntimeError:
                continue
            if chance > 0.8:
                action = np.full(3, 0.5, np.float32)
                runner.did(action)
            did[-1].append(round(float(action[0]), 4))
            if chance > 0.97:
                runner.reset()
                did.append([])
            elif chance > 0.9:
                runner.stop()
        runner.stop()
        runner.act(OBS)
        runner.close()
        robot._ws.close()
    told: list[list[float]] = [[]]
    for entry in Logged.told:
        if entry == "reset":
            told.append([])
        else:
            told[-1].append(entry)
    told = [episode for episode in told if episode]
    assert sum(map(len, did)) > 300 and len(did) > 5
    # All of it, in order and once, but for what was done after an episode's last observation.
    assert told[-1] == did[-1]
    matched, missing = 0, 0
    for episode in did:
        if matched < len(told) and told[matched] == episode[: len(told[matched])]:
            missing += len(episode) - len(told[matched])
            matched += 1
        else:
            assert len(episode) <= 6
    assert matched == len(told) and missing < 7 * len(did)


class StandIn:
    """The robot of docs/ROBOTS.md."""

    def __init__(self):
        self.actions = []

    def observe(self):
        return np.zeros(3, np.float32)

    def execute(self, action):
        self.actions.append(float(action[0]))

    def has_stopped(self):
        return len(self.actions) == 50

    def succeeded(self):
        return True


def test_the_example_of_the_page(capsys, monkeypatch):
    client = pytest.importorskip("openpi_client.websocket_client_policy")
    from doc_blocks import ROOT, blocks

    from genpol.steering.overlap import Overlap, overlapping
    from robots.serving.serve_policy import serve_policy

    page = blocks(ROOT / "docs/ROBOTS.md", "python")
    (example,) = [block for block in page if "ChunkRunner" in block.text]
    robot = StandIn()
    policy = overlapping(Logged(), Overlap(plan=6, execute=4, lookahead=2))
    with serve_policy(policy, port=0, rate_limit=1e6) as server:
        here = int(server.address.split(":")[-1])
        reach = client.WebsocketClientPolicy
        monkeypatch.setattr(client, "WebsocketClientPolicy", lambda host, port: reach(host, here))
        found = {"robot": robot, "__name__": "__main__"}
        exec(compile(example.text, "docs/ROBOTS.md", "exec"), found)
        found["runner"].close()
        found["server"]._ws.close()
    assert len(robot.actions) == 100 and "times for an answer" in capsys.readouterr().out
