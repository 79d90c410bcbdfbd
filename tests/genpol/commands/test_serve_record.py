"""`genpol serve --record`, driven by openpi's own client, runtime and chunk broker."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pytest
import torch

pytest.importorskip("websockets")
pytest.importorskip("msgpack")
pytest.importorskip("pyarrow")
openpi = pytest.importorskip("openpi_client.websocket_client_policy")

from fake_servers import SHAPES, SPEC, OpenpiServer
from forked import forked, free_port
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.runtime.agents.policy_agent import PolicyAgent
from openpi_client.runtime.environment import Environment
from openpi_client.runtime.runtime import Runtime
from recordings import add_journals

from genpol.commands.serve.command import make_server
from genpol.commands.serve.options import Serve
from genpol.policies.architecture import Architecture
from genpol.policies.policy import ChunkPolicy
from offline.critics.value import ValueFunction
from offline.errors import InputError
from robots.datasets.recorded import RecordedEpisodes
from robots.recording.converter import Converter

SMALL = Architecture(features=16, encoder_layers=1, width=16, layers=1, denoising_steps=2)
STATE = np.array([0.5, -1.0, 2.0], np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Untrained components, saved as the commands save them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("components")
    ValueFunction(SPEC, SHAPES, hidden=(16,)).eval().save(folder / "value")
    ChunkPolicy("gaussian", SPEC, SHAPES, architecture=SMALL).eval().save(folder / "clone")
    return {name: str(folder / name) for name in ("value", "clone")}


@pytest.fixture
def left(monkeypatch):
    """Journals are left, and converted by the test: no process is started."""
    monkeypatch.setattr(Converter, "convert", lambda self, journal: None)


def client(server):
    return openpi.WebsocketClientPolicy("127.0.0.1", int(server.address.split(":")[-1]))


class Drifting(Environment):
    """A state that the actions move. With the first observation of an episode it says that one
    begins, and how the one before it went: openpi's runtime sends nothing else of it."""

    def __init__(self, lengths, verdicts):
        self.lengths, self.verdicts = list(lengths), [None, *verdicts]
        self.applied, self.seen = [], []

    def reset(self):
        self.state, self.step, self.first = STATE.copy(), 0, True
        self.applied.append([])
        self.seen.append([])

    def is_episode_complete(self):
        return self.step >= self.lengths[len(self.applied) - 1]

    def get_observation(self):
        self.seen[-1].append(self.state.copy())
        said = {"state": self.state, "prompt": "drift"}
        if self.first:
            verdict = self.verdicts[len(self.applied) - 1]
            said |= {"reset": True} | ({} if verdict is None else {"success": verdict})
        self.first = False
        return said

    def apply_action(self, action):
        self.applied[-1].append(action["actions"])
        self.state = self.state + 0.01 * action["actions"].astype(np.float32)
        self.step += 1


def test_openpis_runtime_is_recorded_as_it_acted(folders, tmp_path, capsys):
    options = {"policy": folders["clone"], "value": (folders["value"],), "num_candidates": 4}
    record = tmp_path / "recorded"
    robot = Drifting([6, 4], [True, False])
    with make_server(Serve(port=0, record=str(record), record_fps=20.0, **options)) as server:
        policy = client(server)
        assert "success" in policy.get_server_metadata()["genpol"]["features"]
        Runtime(robot, PolicyAgent(ActionChunkBroker(policy, 2)), [], num_episodes=2).run()
        assert policy.infer({"reset": True, "success": False})["success"] is False
        with pytest.raises(InputError, match="is in use by"):
            make_server(Serve(port=0, record=str(record), record_fps=20.0, **options))
        policy._ws.close()
    assert "recorded 2 episodes, 5 decisions" in capsys.readouterr().out
    episodes = RecordedEpisodes(record)
    assert episodes.lengths.tolist() == [6, 4]
    for i in range(2):
        episode, found = episodes[i], episodes.decisions(i)
        np.testing.assert_allclose(episode.actions, robot.applied[i], atol=1e-6)
        made = np.flatnonzero(episode.observed)
        assert made.tolist() == found.frames.tolist() == [0, 2, 4][: len(made)]
        np.testing.assert_allclose(episode.obs["state"][made], np.array(robot.seen[i])[made])
        assert episode.success is (i == 0) and episode.language == "drift"
        for d in range(len(found)):
            assert found.candidates[d].shape == (4, 2, 3) and found.scores[d].shape == (4,)
            chosen = found.candidates[d][found.chosen[d]]
            np.testing.assert_allclose(chosen, found.answers[d], atol=1e-6)
    info = json.loads((record / "meta" / "info.json").read_text())
    assert info["fps"] == 20 and info["total_frames"] == 10


def test_a_proxys_robot_is_recorded_and_its_server_is_told_nothing_of_it(folders, tmp_path, left):
    drawn = np.random.default_rng(0)

    def infer(message):
        low, high = np.array(SPEC.low), np.array(SPEC.high)
        return {"actions": drawn.uniform(low, high, (5, 3))}

    record = tmp_path / "recorded"
    with OpenpiServer(infer) as other:
        options = {"upstream": other.url, "value": (folders["value"],), "num_candidates": 3}
        with make_server(Serve(port=0, record=str(record), **options)) as server:
            robot = client(server)
            first = robot.infer({"state": STATE, "reset": True})
            taken = {"executed": first["actions"][:1], "reward": 1.5}
            second = robot.infer({"state": 2 * STATE, **taken})
            by_hand = {"executed": np.ones((7, 3)), "intervention": True}
            robot.infer({"state": 3 * STATE, **by_hand})
            with pytest.raises(RuntimeError, match='"intervention" needs "executed"'):
                robot.infer({"state": STATE, "intervention": True})
            with pytest.raises(RuntimeError, match='"reward" is NaN or infinite'):
                robot.infer({"state": STATE, "reward": float("nan")})
            last = {"executed": np.empty((0, 3)), "success": True, "state": 4 * STATE}
            assert robot.infer(last)["actions"].shape == (2, 3)
            robot._ws.close()
        assert {key for message in other.messages for key in message} == {"state"}
    add_journals(record)
    episodes = RecordedEpisodes(record)
    episode, found = episodes[0], episodes.decisions(0)
    assert episodes.lengths.tolist() == [8] and found.steps.tolist() == [1, 7, 0]
    np.testing.assert_allclose(episode.actions[0], first["actions"][0], atol=1e-6)
    np.testing.assert_allclose(episode.actions[1:], 1.0)
    assert found.intervention.tolist() == [False, True, False]
    np.testing.assert_allclose(found.answers[1], second["actions"], atol=1e-6)
    assert found.candidates[0].shape == (3, 2, 3) and found.answers[0].shape == (2, 3)
    assert episode.rewards.tolist() == [1.5, *[0.0] * 7] and episode.success is True
    np.testing.assert_allclose(episode.obs["state"][-1], 4 * STATE)


def serve_until_killed(folders, record, port, options):
    """What the killed process does: nothing of it ends in order."""
    with make_server(Serve(port=port, record=str(record), **options)) as server:
        print(server.address, flush=True)
        time.sleep(120)


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_no_answered_decision_is_lost_to_sigkill(kills, folders, tmp_path, left):
    """The server is killed a moment after an answer, at random, and another takes its place."""
    record, random, answered = tmp_path / "recorded", np.random.default_rng(kills), []
    options = {"policy": folders["clone"], "value": (folders["value"],), "num_candidates": 4}
    left_by_the_dead = []
    for kill in range(kills):
        port, said = free_port(), tmp_path / f"{kill}.txt"
        process = forked(lambda port=port: serve_until_killed(folders, record, port, options),
                         said, said)  # fmt: skip
        try:
            end = time.monotonic() + 60
            while not (said.is_file() and "ws://" in said.read_text()):
                assert process.is_alive() and time.monotonic() < end, said.read_text()
                time.sleep(0.02)
            robot = openpi.WebsocketClientPolicy("127.0.0.1", port)
            answered.append([])
            for step in range(int(random.integers(1, 8))):
                answer = robot.infer({"state": STATE * step / 10})
                answered[-1].append(answer["actions"])
            time.sleep(random.uniform(0, 0.005))
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.join(30)
        left_by_the_dead.append(len(list((record / "genpol" / "open").iterdir())))
    assert left_by_the_dead == list(range(1, kills + 1))
    add_journals(record)
    episodes = RecordedEpisodes(record)
    assert len(episodes) == kills
    for i in range(kills):
        assert episodes.facts(i).ended == "lost"
        np.testing.assert_allclose(episodes[i].actions, np.concatenate(answered[i]), atol=1e-6)
