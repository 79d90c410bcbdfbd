"""From a robot's own episodes to a newer version on the robot, through the commands."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("websockets")
pytest.importorskip("pyarrow")
openpi = pytest.importorskip("openpi_client.websocket_client_policy")

from fake_servers import OpenpiServer
from toy_data import line_data

from genpol.cli import main
from genpol.commands.serve.command import make_server
from genpol.commands.serve.options import Serve
from offline.critics.value import ValueFunction
from robots.datasets.open import open_dataset

SIZES = [
    "--hidden", "8", "8", "--batch-size", "16", "--action-chunk", "2", "--device", "cpu",
    "--wandb", "disabled", "--log-every", "4", "--checkpoint-every", "4",
]  # fmt: skip


def demos(_path):
    """A reader for `--data test_learn_from_recording:demos@x`."""
    return line_data(9)


class Line:
    """The line task of `toy_data` as a robot that speaks to a server."""

    def __init__(self, address: str, seed: int) -> None:
        self.client = openpi.WebsocketClientPolicy("127.0.0.1", int(address.split(":")[-1]))
        self.rng = np.random.default_rng(seed)

    def episode(self, steps: int = 12) -> set[str]:
        """Play one; the versions that decided."""
        x, done, versions = self.rng.choice([-1.0, 1.0]) * self.rng.uniform(0.5, 1), False, set()
        for _ in range(0, steps, 2):
            answer = self.client.infer({"state": np.array([x], np.float32)})
            versions.add(answer["steer"]["version"])
            for action in answer["actions"][:2]:
                x = float(np.clip(x + action[0] / 8, -1.2, 1.2))
                done = done or abs(x) < 0.1
            if done:
                break
        last = {"state": np.array([x], np.float32), "success": True}
        self.client.infer(last if done else {"success": False})
        return versions


@pytest.mark.slow
def test_from_the_first_episode_to_a_newer_version(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, data = np.random.default_rng(0), "test_learn_from_recording:demos@x"
    asked = []

    def policy(message):
        asked.append(message)
        return {"actions": rng.uniform(-2, 2, (3, 1)).astype(np.float32)}

    with OpenpiServer(policy) as upstream:
        options = {"upstream": upstream.url, "record": "record", "watch": "runs/edit"}
        options |= {"num_candidates": 4, "actions_of": data, "watch_every": 0.05}
        with make_server(Serve(port=0, **options)) as server:
            robot = Line(server.address, 0)
            assert [robot.episode() for _ in range(8)] == [{"0"}] * 8
            robot.client._ws.close()
        recorded = open_dataset("record")
        assert len(recorded) == 8 and recorded.decisions(0).candidates[0].shape == (4, 3, 1)
        assert {recorded[i].success for i in range(8)} >= {False}
        before = len(asked)
        both = ["--data", data, "--data", "record", "--data-weights", "1", "3"]
        words = ["--base", "recorded", "--steps", "0", "--offline-updates", "8", *both, *SIZES]
        assert main(["train", *words, "--num-candidates", "4", "--output", "runs/edit"]) == 0
        assert main(["value", *both, *SIZES, "--steps", "8", "--output", "runs/value"]) == 0
        assert len(asked) == before
        learnt = ValueFunction.load("runs/edit").meta["learnt_from"]
        assert len(learnt) == 8 and learnt == [recorded.facts(i).id for i in range(8)]
        assert ValueFunction.load("runs/value").meta["learnt_from"] == learnt
        with make_server(Serve(port=0, **options)) as server:
            robot = Line(server.address, 1)
            (version,) = robot.episode()
            assert version.startswith("1-")
            assert main(["train", *words, "--seed", "1", "--num-candidates", "4", "--output",
                         "runs/next"]) == 0  # fmt: skip
            Path("runs/edit").rename("runs/old")
            Path("runs/next").rename("runs/edit")
            end = time.monotonic() + 30
            while version.startswith("1-") and time.monotonic() < end:
                (version,) = robot.episode()
            assert version.startswith("2-")
            robot.client._ws.close()
    recorded = open_dataset("record")
    served = [recorded.facts(i).versions for i in range(len(recorded))]
    assert served[0] == ["0"] and served[-1] == [version]
    assert "version 2-" in capsys.readouterr().out
    assert (tmp_path / "record" / "genpol" / "versions.csv").read_text().count("\n") == 3
