"""`genpol serve --edit` and `--watch`, driven by the real openpi client."""

from __future__ import annotations

import dataclasses
import re
import shutil
import time

import numpy as np
import pytest
import torch

pytest.importorskip("websockets")
pytest.importorskip("msgpack")
openpi = pytest.importorskip("openpi_client.websocket_client_policy")

from fake_servers import SHAPES, SPEC, OpenpiServer

from genpol.agents.deploy import save_edit
from genpol.agents.edit import EditPolicy
from genpol.commands.serve.command import make_server
from genpol.commands.serve.options import Serve
from genpol.policies.architecture import Architecture
from genpol.policies.policy import ChunkPolicy
from offline.critics.value import ValueFunction
from offline.errors import InputError

STATE = np.array([0.5, -1.0, 2.0], np.float32)
SMALL = Architecture(features=16, encoder_layers=1, width=16, layers=1, denoising_steps=2)


def save_run(folder, seed, *, edits=0, spec=SPEC, shapes=SHAPES, **meta):
    """A run as `genpol train` leaves it, untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = ValueFunction(spec, shapes, hidden=(16,), heads="stacked", meta=meta).eval()
        value.save(folder / "value")
        if edits:
            size = spec.chunk * spec.dim
            policy = EditPolicy(value.encoder.dim, size, (16,), scale=0.3, clip=True)
            save_edit(policy, folder / "edit", candidates=4, edits=edits)
    return str(folder)


@pytest.fixture
def upstream():
    rng = np.random.default_rng(0)
    low, high = np.array(SPEC.low), np.array(SPEC.high)
    with OpenpiServer(lambda _: {"actions": rng.uniform(low, high, (5, 3))}) as server:
        yield server


def client(server):
    return openpi.WebsocketClientPolicy("127.0.0.1", int(server.address.split(":")[-1]))


def serving(**options):
    return make_server(Serve(port=0, **options))


def test_edits_of_another_servers_answers(upstream, tmp_path):
    run = save_run(tmp_path / "run", 0, edits=2)
    answers = []
    infer = upstream.infer
    upstream.infer = lambda message: answers.append(infer(message)) or answers[-1]
    with serving(upstream=upstream.url, edit=run) as proxy:
        robot = client(proxy)
        edited = 0
        for _ in range(12):
            del answers[:]
            answer = robot.infer({"state": STATE})
            assert len(answers) == 4  # as many as the edits were trained with
            steer, actions = answer["steer"], answer["actions"]
            assert steer["num_candidates"] == 12 and actions.shape == (2, 3)  # that were scored
            span = 0.3 * (np.array(SPEC.high) - np.array(SPEC.low)) / 2
            moves = [np.abs(actions - one["actions"][:2]) for one in answers]
            assert any((move <= span + 1e-5).all() for move in moves)
            edited += steer["chosen"] >= 4 and min(move.max() for move in moves) > 1e-6
        assert edited > 3
        robot._ws.close()


def test_a_clone_with_a_runs_edits_beside_its_own_units(tmp_path):
    run = save_run(tmp_path / "run", 0, edits=1)
    other = SPEC.with_statistics(np.random.default_rng(0).normal(0, 0.1, (50, 3)))
    torch.manual_seed(0)
    spec = dataclasses.replace(other, scale="p01_p99")
    ChunkPolicy("gaussian", spec, SHAPES, architecture=SMALL).eval().save(tmp_path / "clone")
    with serving(policy=str(tmp_path / "clone"), edit=run) as server:
        robot = client(server)
        answer = robot.infer({"state": STATE})
        assert answer["steer"]["num_candidates"] == 8
        assert (answer["actions"] >= np.array(SPEC.low) - 1e-5).all()
        assert (answer["actions"] <= np.array(SPEC.high) + 1e-5).all()
        robot._ws.close()


def until(done, robot, *, seconds=20.0):
    """Ask, each time in a new episode, until an answer is as wanted."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = robot.infer({"state": STATE, "reset": True})
        if done(answer["steer"]):
            return answer["steer"]
        time.sleep(0.02)
    raise AssertionError(f"it never came; the last answer had {answer['steer']}")


@pytest.mark.parametrize("own", [False, True])
def test_newer_versions_are_taken_up_between_episodes(own, upstream, tmp_path, capsys):
    torch.manual_seed(0)
    ChunkPolicy("gaussian", SPEC, SHAPES, architecture=SMALL).eval().save(tmp_path / "clone")
    served = {"policy": str(tmp_path / "clone")} if own else {"upstream": upstream.url}
    watched = tmp_path / "runs" / "value"
    options = {"watch": str(watched), "watch_every": 0.02, "num_candidates": 3}
    if not own:
        options["value"] = (save_run(tmp_path / "first", 9),)
    with serving(**served, **options) as server:
        robot = client(server)
        steer = robot.infer({"state": STATE})["steer"]
        assert steer["version"] == "0" and steer["num_candidates"] == 3
        save_run(tmp_path / "one", 1)
        watched.parent.mkdir()
        shutil.move(tmp_path / "one", watched)
        # This robot's episode goes on with what it began with; another's begins with the newer.
        other = client(server)
        first = until(lambda steer: steer["version"] != "0", other)
        assert re.fullmatch(r"1-[0-9a-f]{8}", first["version"])
        assert robot.infer({"state": STATE})["steer"]["version"] == "0"
        assert robot.infer({"success": True}) is not None
        assert robot.infer({"state": STATE})["steer"]["version"] == first["version"]
        # Edits come with the next one, in the place of the old folder.
        save_run(tmp_path / "two", 2, edits=1)
        shutil.move(watched, tmp_path / "old")
        shutil.move(tmp_path / "two", watched)
        second = until(lambda steer: steer["version"].startswith("2-"), other)
        assert second["num_candidates"] == 6
        for one in (robot, other):
            one._ws.close()
    assert f"version {first['version']}" in capsys.readouterr().out


def test_what_cannot_be_served_is_said_once_and_the_present_one_stays(tmp_path, upstream, capsys):
    watched = tmp_path / "value"
    save_run(watched, 0)
    options = {"watch": str(watched), "watch_every": 0.02, "env": None}
    with serving(upstream=upstream.url, value=(save_run(tmp_path / "v", 1),), **options) as server:
        robot = client(server)
        until(lambda steer: steer["version"].startswith("1-"), robot)
        for bad in (
            {"shapes": {**SHAPES, "camera_pose": (2,)}},
            {"spec": SPEC.from_bounds([-1] * 4, [1] * 4, chunk=2)},
        ):
            save_run(tmp_path / "bad", 3, **bad)
            shutil.rmtree(watched)
            shutil.move(tmp_path / "bad", watched)
            time.sleep(0.3)
            assert robot.infer({"state": STATE, "reset": True})["steer"]["version"][:2] == "1-"
        (watched / "value" / "value.safetensors").write_bytes(b"torn")
        time.sleep(0.2)
        save_run(watched, 5, unfinished="3 of 9 steps")
        time.sleep(0.2)
        assert robot.infer({"state": STATE, "reset": True})["steer"]["version"][:2] == "1-"
        save_run(watched, 6)
        until(lambda steer: steer["version"][:2] != "1-", robot)
        robot._ws.close()
    said = capsys.readouterr().out
    assert said.count("camera_pose, which the present one does not") == 1
    assert said.count("the policy's actions have A=3") == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"value": ("v",), "edit": "e"}, "leave out --value"),
        ({"value": ("v", "w"), "watch": "x"}, "--watch replaces one value"),
        ({"edit": "e", "judge_by": "data"}, "pass --watch"),
        ({}, "--upstream needs --value, --edit or --watch"),
        ({"watch": "absent"}, r"does not say what its actions are.*--env"),
        ({"edit": "{plain}"}, "holds no edits"),
    ],
)
def test_options_that_do_not_go_together(options, named, upstream, tmp_path):
    plain = save_run(tmp_path / "plain", 0)
    given = {k: v.format(plain=plain) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(InputError, match=named):
        serving(upstream=upstream.url, **given)


def test_edits_of_another_run_are_refused(tmp_path, upstream):
    run = save_run(tmp_path / "run", 0, edits=1)
    save_run(tmp_path / "run", 0, shapes={"state": (4,)})
    with pytest.raises(InputError, match="are they of two runs"):
        serving(upstream=upstream.url, edit=run)
