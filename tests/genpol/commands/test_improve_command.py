"""`genpol improve` conducts: with a server and a learner that need no libraries, and the words of
the real ones."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import pytest
from doc_blocks import ROOT
from recorded_folders import add_episode

from genpol.commands.improve.command import Conductor, command_line, run
from genpol.commands.improve.options import Improve, check, recording_of
from genpol.commands.improve.scan import Scan
from genpol.commands.improve.words import MODULES, lessons, serve_words
from genpol.commands.parsing import parse
from genpol.commands.serve.options import Serve
from genpol.commands.serve.options import check as check_serve
from genpol.commands.train.options import Train
from genpol.commands.train.options import check as check_train
from genpol.commands.value.options import Value
from genpol.improving import processes
from genpol.improving.seen import counts_of
from offline.errors import InputError


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(processes, "PROGRAM", "stub_command")
    monkeypatch.setattr("genpol.commands.improve.words.MODULES", ("json",))
    monkeypatch.setattr("genpol.commands.improve.command.LOOK", 0.05)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers"))))


def options(tmp_path, **more):
    given = {"upstream": "ws://127.0.0.1:1", "output": tmp_path / "run", "port": 0, "every": 4}
    return Improve(**given | more)


def play(conductor, true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        conductor.tick()
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)


def state(config):
    return json.loads((config.output / "state.json").read_text())


def test_episodes_are_learnt_from_and_the_page_says_so(tmp_path, stub):
    config = options(tmp_path)
    conductor = Conductor(config)
    try:
        for index in range(4):
            add_episode(recording_of(config), index, success=index == 2)
        play(conductor, lambda: (config.output / "current").exists())
        add_episode(recording_of(config), 4, success=True, versions=["1-abc"])
        play(conductor, lambda: state(config)["recorded"] == 5 and not state(config)["due"])
        said = state(config)
        assert said["served"] == 1 and said["labelled"] == 5 and said["learning"] is None
        assert said["pids"]["server"] == conductor.server.pid and not said["stopped"]
        page = (config.output / "index.html").read_text()
        assert "<td>1-abc</td><td>1</td><td>1</td><td>100%</td>" in page
        words = (config.output / "current" / "value" / "words").read_text()
        assert f"--data {recording_of(config)}" in words and "--action-chunk 3" in words
    finally:
        conductor.stop()
    assert state(config)["stopped"] and not conductor.server.ready
    again = Conductor(config)  # nothing is learnt twice, and the port is the same
    try:
        assert again.port == conductor.port
        play(again, lambda: again.server.ready and len(again.seen) == 5)
        assert state(config)["served"] == 1 and not state(config)["due"]
    finally:
        again.stop()


def test_it_ends_by_itself_after_so_many_episodes(tmp_path, stub, capsys):
    config = options(tmp_path, episodes=4)
    for index in range(5):
        add_episode(recording_of(config), index, success=index > 2)
    run(config)
    said = capsys.readouterr().out
    assert "serving on ws://127.0.0.1:" in said and "version 1 is ready" in said
    assert "5 episodes recorded, 2 successes of 5 with a label, 1 versions learnt" in said
    assert json.loads((config.output / "config.json").read_text())["every"] == 4


def test_labels_are_over_what_the_robot_said(tmp_path):
    for index, success in enumerate((True, None, False)):
        add_episode(tmp_path, index, success=success)
    scan = Scan(tmp_path)
    assert [e.success for e in scan()] == [True, None, False] and scan.executed == 3
    (tmp_path / "labels.csv").write_text("episode,success,moment\n0,,\n1,1,0.5\n9,1,\n")
    assert [e.success for e in scan()] == [None, True, False]
    assert counts_of(scan()).labelled == 2
    damaged = tmp_path / "genpol" / "decisions" / "chunk-000" / "file-003.parquet"
    damaged.write_bytes(b"PAR1")
    assert len(scan()) == 3 and scan.damaged == {damaged}


def test_a_first_value_is_served_until_something_is_learnt(tmp_path, stub):
    (tmp_path / "first" / "value").mkdir(parents=True)
    Conductor(options(tmp_path, value=tmp_path / "first"))
    assert (tmp_path / "run" / "current").resolve() == tmp_path / "first"
    with pytest.raises(InputError, match="--value .* is no folder"):
        Conductor(options(tmp_path, output=tmp_path / "other", value=tmp_path / "none"))


EVERYTHING = {
    "rename": ("a=b",), "prompt": "push", "env": "metaworld/push-v3", "num_candidates": 4,
    "serve_options": "--deadline-ms 100", "device": "cpu", "trust": True, "image_keys": ("image",),
    "obs_keys": ("state",), "data": ("demos.hdf5", "more"), "recorded_weight": 2.0,
    "success": ("all",),
}  # fmt: skip


@pytest.mark.parametrize("more", [{}, EVERYTHING])
def test_the_words_are_of_commands_that_take_them(tmp_path, more):
    config = options(tmp_path, **more)
    words = serve_words(config, 8123)
    served = parse(Serve, words[1:], "genpol serve")
    assert words[0] == "serve" and served.port == 8123 and served.upstream == config.upstream
    assert served.rename == config.rename and served.prompt == config.prompt
    check_serve(served)
    [lesson] = lessons(config, 3)
    value = parse(Value, [*lesson.words, "--output", "x"], "genpol value")
    assert value.data == (str(recording_of(config)), *config.data) and value.action_chunk == 3
    assert value.success == (("data", "all", "all") if config.success else ())
    value.check()
    for learn, gives in (("bestofn", ("value",)), ("expo", ("value", "edit"))):
        [lesson] = lessons(replace(config, learn=learn), 3)
        train = parse(Train, [*lesson.words, "--output", "x"], "genpol train")
        assert lesson.gives == gives and train.agent == learn and train.base == "recorded"
        assert train.offline_updates == config.steps
        check_train(train)


def test_what_the_next_server_imports_exists():
    import importlib

    assert all(importlib.import_module(name) for name in MODULES)


def test_the_command_can_be_typed_again(tmp_path):
    import shlex

    config = options(tmp_path, **EVERYTHING)
    words = shlex.split(command_line(config))
    assert words[:2] == ["genpol", "improve"]
    assert parse(Improve, words[2:], "genpol improve") == config


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"upstream": None}, "either --policy or --upstream"),
        ({"policy": "runs/clone"}, "either --policy or --upstream"),
        ({"success": ("all",)}, "1 --success for 0 --data"),
        ({"success": ("all",) * 3, "data": ("a", "b")}, "3 --success for 2 --data"),
        ({"serve_options": "'"}, "--serve-options cannot be read as words"),
        ({"learn_options": "x --critic iql"}, '--learn-options takes options .* received "x"'),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, more, said):
    with pytest.raises(InputError, match=said):
        check(options(tmp_path, **more))
