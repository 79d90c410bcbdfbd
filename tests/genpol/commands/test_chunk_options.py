"""`--score`, `--execute`, `--lookahead` and `--temporal-ensemble`: what they come to, and what they
refuse; the two commands with them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_steering import SPEC as LINE
from fake_steering import Quadratic

from genpol.cli import main
from genpol.commands.chunk_options import ChunkOptions, check_chunks, chunks, policy_chunk
from genpol.steering.overlap import Overlap
from genpol.steering.windows import Windows
from offline.errors import InputError, SpecError

EIGHT = Quadratic(LINE.with_chunk(8))


@pytest.mark.parametrize(
    ("options", "plan", "overlap"),
    [
        ({}, 8, None),  # the first 8 of 50
        ({"score": "windows"}, 50, None),  # all 50
        ({"lookahead": 3}, 8, Overlap(8, 5, 3)),
        ({"execute": 8}, 8, None),
        ({"execute": 4}, 8, Overlap(8, 4)),
        ({"execute": 4, "lookahead": 2}, 8, Overlap(8, 4, 2)),
        ({"score": "windows", "lookahead": 10}, 50, Overlap(50, 40, 10)),
        # What is not executed is not scored...
        ({"score": "windows", "execute": 20}, 20, None),
        ({"score": "windows", "execute": 20, "lookahead": 5}, 25, Overlap(25, 20, 5)),
        ({"score": "windows", "execute": 2}, 8, Overlap(8, 2)),
        # ... but for what the next plans are averaged with.
        (
            {"score": "windows", "execute": 10, "temporal_ensemble": 0.01},
            50,
            Overlap(50, 10, 0, 0.01),
        ),
        ({"execute": 1, "temporal_ensemble": 0.0}, 8, Overlap(8, 1, 0, 0.0)),
    ],
)
def test_fifty_actions_and_a_value_of_eight(options, plan, overlap):
    value, found = chunks(ChunkOptions(**options), EIGHT, 50)
    assert value.spec.chunk == plan and found == overlap
    assert isinstance(value, Windows) == (plan > 8)


def test_without_a_value_the_policys_chunk_is_the_plan():
    assert chunks(ChunkOptions(), None, 6) == (None, None)
    assert chunks(ChunkOptions(lookahead=2), None, 6) == (None, Overlap(6, 4, 2))
    assert chunks(ChunkOptions(execute=2), None, 6) == (None, Overlap(6, 2))
    assert policy_chunk(ChunkOptions(), None) is None
    assert policy_chunk(ChunkOptions(), EIGHT) == 8
    assert policy_chunk(ChunkOptions(score="windows"), EIGHT) is None


@pytest.mark.parametrize(
    ("options", "length", "said"),
    [
        ({"lookahead": 8}, 50, "--lookahead need 9 actions of a chunk, and 8 .*--score windows"),
        ({"lookahead": 8}, 8, "--lookahead need 9 actions of a chunk, and 8 are scored: pass less"),
        ({"execute": 7, "lookahead": 2}, 8, "--execute and --lookahead need 9 actions"),
        ({"execute": 51, "score": "windows"}, 50, "need 51 actions of a chunk, and 50 are scored"),
        ({"execute": 8, "temporal_ensemble": 0.0}, 50, "with --execute 8 of 8 actions none do"),
    ],
)
def test_what_does_not_fit_is_refused(options, length, said):
    with pytest.raises(InputError, match=said):
        chunks(ChunkOptions(**options), EIGHT, length)


def test_what_needs_something_else_is_refused():
    with pytest.raises(InputError, match="--score windows needs --value"):
        check_chunks(ChunkOptions(score="windows"), valued=False)
    with pytest.raises(InputError, match="--temporal-ensemble averages .* pass --execute"):
        check_chunks(ChunkOptions(temporal_ensemble=0.01), valued=True)
    with pytest.raises(SpecError, match="chunk of 4 actions cannot be scored"):
        chunks(ChunkOptions(score="windows"), EIGHT, 4)


# -- genpol serve

STATE = np.array([0.5, -1.0, 2.0], np.float32)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A value of two actions; a policy of seven, which counts its calls."""
    from fake_servers import SHAPES, SPEC

    from offline.critics.value import ValueFunction

    folder = tmp_path_factory.mktemp("chunks")
    torch.manual_seed(0)
    ValueFunction(SPEC, SHAPES, hidden=(8,), meta={"discount": 0.9}).eval().save(folder / "value")
    (folder / "seven_actions.py").write_text(
        "import numpy as np\n"
        "class Policy:\n"
        "    action_chunk = 7\n"
        "    def __init__(self):\n"
        "        self.calls = 0\n"
        "    def reset(self):\n"
        "        self.calls = 0\n"
        "    def __call__(self, obs):\n"
        "        self.calls += 1\n"
        "        return np.repeat((self.calls / 10 + np.arange(7) / 100)[:, None], 3, 1)\n"
        "policy = Policy\n"
    )
    return folder


def served(parts, monkeypatch, **options):
    pytest.importorskip("websockets")
    pytest.importorskip("msgpack")
    from genpol.commands.serve.command import make_server
    from genpol.commands.serve.options import Serve

    monkeypatch.syspath_prepend(str(parts))
    given = {"policy": "seven_actions:policy", "value": (str(parts / "value"),), "port": 0}
    given |= {"num_candidates": 1}
    return make_server(Serve(**(given | options)))


def conversation(server, *messages):
    """The first dimension of the answers to these messages, and what the server says of itself."""
    from websockets.sync.client import connect

    from robots.serving.wire import pack, unpack

    with server, connect(server.address, compression=None) as robot:
        greeting = unpack(robot.recv(timeout=30))["genpol"]
        answers = []
        for message in messages:
            robot.send(pack({"state": STATE, **message}))
            answer = unpack(robot.recv(timeout=30))
            answers.append([round(float(x), 4) for x in answer["actions"][:, 0]])
    return answers, greeting


def test_serving_the_first_actions_or_all(parts, monkeypatch):
    answers, said = conversation(served(parts, monkeypatch), {}, {})
    assert answers == [[0.1, 0.11], [0.2, 0.21]] and said["spec"]["chunk"] == 2
    answers, said = conversation(served(parts, monkeypatch, score="windows"), {})
    assert answers == [[0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16]] and said["spec"]["chunk"] == 7
    assert "lookahead" not in said


def test_serving_with_a_lookahead(parts, monkeypatch):
    server = served(parts, monkeypatch, score="windows", execute=3, lookahead=2)
    answers, said = conversation(server, {}, {}, {"running": 0}, {"reset": True})
    assert answers == [
        [0.1, 0.11, 0.12, 0.13, 0.14],
        [0.13, 0.14, 0.22, 0.23, 0.24],
        [0.3, 0.31, 0.32, 0.33, 0.34],
        [0.1, 0.11, 0.12, 0.13, 0.14],
    ]
    assert said["lookahead"] == 2 and said["spec"]["chunk"] == 5


def test_serving_a_policy_alone_with_a_lookahead(parts, monkeypatch):
    options = {"value": (), "num_candidates": None, "env": None, "lookahead": 1}
    with pytest.raises(InputError):  # a function does not say what its actions are
        served(parts, monkeypatch, **options)
    from fake_servers import SHAPES, SPEC

    from genpol.policies.architecture import Architecture
    from genpol.policies.policy import ChunkPolicy

    small = Architecture(features=16, encoder_layers=1, width=16, layers=1, denoising_steps=2)
    clone = ChunkPolicy("gaussian", SPEC.with_chunk(3), SHAPES, architecture=small).eval()
    clone.save(parts / "clone")
    server = served(parts, monkeypatch, **options | {"policy": str(parts / "clone")})
    answers, _ = conversation(server, {}, {})
    assert answers[1][0] == answers[0][2] and len(answers[1]) == 3


# -- genpol steer


@pytest.fixture(scope="module")
def reaching(tmp_path_factory) -> Path:
    """A clone of eight actions and a value of two, for an environment of one's own."""
    from genpol.policies.architecture import Architecture
    from genpol.policies.policy import ChunkPolicy
    from offline.critics.value import ValueFunction
    from robots.envs.make import make_env

    pytest.importorskip("metaworld")
    env = make_env("metaworld/reach-v3")
    shapes = {key: space.shape for key, space in env.observation_space.items()}
    spec = env.action_spec
    env.close()
    folder = tmp_path_factory.mktemp("reaching")
    torch.manual_seed(0)
    small = Architecture(features=16, encoder_layers=1, width=16, layers=1, denoising_steps=2)
    ChunkPolicy("flow", spec.with_chunk(8), shapes, architecture=small).eval().save(
        folder / "clone"
    )
    value = ValueFunction(spec.with_chunk(2), shapes, env="metaworld/reach-v3", hidden=(8,))
    value.eval().save(folder / "value")
    return folder


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--score", "windows", "--lookahead", "3"], {"score": "windows", "lookahead": 3}),
        pytest.param(["--lookahead", "1"], {"lookahead": 1}, marks=SLOW),
        pytest.param(
            ["--score", "windows", "--execute", "4", "--temporal-ensemble", "0.01"],
            {"score": "windows", "execute": 4, "temporal ensemble": 0.01},
            marks=SLOW,
        ),
    ],
)
def test_steering_with_chunks(reaching, tmp_path, words, settings):
    common = ["--policy", str(reaching / "clone"), "--value", str(reaching / "value")]
    common += ["--episodes", "2", "--max-steps", "9", "--videos", "0", "--wandb", "disabled"]
    common += ["--num-candidates", "3", "--filtered", str(reaching / "clone")]
    output = tmp_path / "steered"
    assert main(["steer", *common, *words, "--output", str(output)]) == 0
    with open(output / "episodes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["arm"] for row in rows} == {"base", "mode", "random", "steered", "filtered"}
    returns = {arm: [row["return"] for row in rows if row["arm"] == arm] for arm in
               ("base", "steered", "filtered")}  # fmt: skip
    assert returns["base"] == returns["filtered"] != returns["steered"]
    config = json.loads((output / "config.json").read_text())
    page = (output / "index.html").read_text()
    for name, number in settings.items():
        assert config[name.replace(" ", "_")] == number and f"{name}" in page


def test_a_filtered_clone_of_shorter_chunks_is_refused(reaching, tmp_path, capsys):
    from genpol.policies.policy import load_policy

    clone = load_policy(reaching / "clone")
    short = type(clone)("gaussian", clone.spec.with_chunk(2), clone.obs_shapes)
    short.eval().save(tmp_path / "short")
    words = ["--policy", str(reaching / "clone"), "--value", str(reaching / "value")]
    words += ["--score", "windows", "--filtered", str(tmp_path / "short"), "--wandb", "disabled"]
    assert main(["steer", *words, "--output", str(tmp_path / "no")]) != 0
    assert "--filtered proposes chunks of H=2, and 8 actions are" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
