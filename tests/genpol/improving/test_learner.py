"""Versions are learnt, gone on with, begun again, given up and published."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest
from doc_blocks import ROOT

from genpol.improving import processes
from genpol.improving.learner import TRIES, Counts, Learner, Lesson
from genpol.improving.versions import Versions
from genpol.runs.lock import FolderLock
from offline.errors import InputError

NONE = Counts(0, 0, 0)


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    monkeypatch.setattr(processes, "PROGRAM", "stub_command")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers"))))


def learner(folder, *, wait=0.0, command="value", parts=("value",), said=None):
    def lessons(_):
        return [Lesson(part, command, ["--wait", str(wait)], ("value",)) for part in parts]

    return Learner(
        Versions(folder), lessons, 20, enough=lambda counts: counts.successes > 0, niceness=3,
        say=[].append if said is None else said.append,
    )  # fmt: skip


def play(one, counts, true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        one.tick(counts)
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)


def starts(folder, number=1):
    path = folder / "versions" / f"{number:04d}" / "value-run" / "starts"
    return path.read_text().split() if path.exists() else []


def kill(one):
    os.kill(one.pid, signal.SIGKILL)


def test_a_version_is_due_after_so_many_labelled_episodes_with_a_success(tmp_path):
    one = learner(tmp_path)
    assert not one.due(Counts(30, 19, 19)) and not one.due(Counts(30, 20, 0))
    assert not one.tick(Counts(30, 19, 19)) and one.version is None
    assert one.due(Counts(30, 20, 1))


def test_versions_are_published_one_after_the_other(tmp_path):
    said: list[str] = []
    one = learner(tmp_path, said=said)
    play(one, Counts(25, 21, 3), lambda: one.last and one.last.state == "served")
    assert (tmp_path / "current" / "value" / "words").is_file()
    assert os.readlink(tmp_path / "current") == "versions/0001"
    assert not (tmp_path / "versions" / "0001" / "value-run" / "checkpoints").exists()
    assert not one.due(Counts(60, 40, 9)) and one.due(Counts(60, 41, 9))
    play(one, Counts(60, 41, 9), lambda: one.last.number == 2 and one.last.state == "served")
    assert os.readlink(tmp_path / "current") == "versions/0002"
    assert [v.episodes for v in Versions(tmp_path).all()] == [21, 41]
    assert one.last.seconds > 0 and one.last.cpu_seconds > 0
    assert said[0] == "learning version 1 from 21 episodes"
    assert said[1].startswith("version 1 is ready, learnt from 21 episodes in")


def test_a_killed_learner_goes_on_where_no_episode_came(tmp_path):
    one = learner(tmp_path, wait=0.6)
    play(one, Counts(20, 20, 3), lambda: starts(tmp_path) == ["begun"])
    kill(one)
    play(one, Counts(20, 20, 3), lambda: one.last.state == "served")
    assert starts(tmp_path) == ["begun", "resumed"]


def test_a_killed_learner_begins_again_where_episodes_came(tmp_path):
    one = learner(tmp_path, wait=0.6)
    play(one, Counts(20, 20, 3), lambda: starts(tmp_path) == ["begun"])
    kill(one)
    play(one, Counts(24, 23, 3), lambda: one.last.state == "served")
    assert starts(tmp_path) == ["begun"] and one.last.episodes == 23


def test_what_a_killed_conductor_left_is_gone_on_with(tmp_path):
    one = learner(tmp_path, wait=30)
    play(one, Counts(20, 20, 3), lambda: starts(tmp_path) == ["begun"])
    one._child.stop()  # as its lifeline does; nothing is told to `one`
    again = learner(tmp_path, wait=0)
    assert again.due(NONE)
    with FolderLock(tmp_path / "versions" / "0001" / "value-run"):  # still about to end
        assert not again.tick(Counts(20, 20, 3)) and again.pid is None
    play(again, Counts(20, 20, 3), lambda: again.last.state == "served")
    assert starts(tmp_path) == ["begun", "resumed"]


def test_a_checkpoint_that_cannot_be_gone_on_with_is_begun_again(tmp_path):
    one = learner(tmp_path, wait=0.6)
    play(one, Counts(20, 20, 3), lambda: starts(tmp_path) == ["begun"])
    (tmp_path / "versions" / "0001" / "value-run" / "spoilt").touch()
    kill(one)
    play(one, Counts(20, 20, 3), lambda: one.last.state == "served")
    assert starts(tmp_path) == ["begun"]  # in a new folder


def test_a_command_that_cannot_is_given_up_until_more_episodes_come(tmp_path):
    said: list[str] = []
    one = learner(tmp_path, command="fail", said=said)
    play(one, Counts(20, 20, 3), lambda: one.last and one.last.state == "failed")
    assert one.last.why == "error: no such thing" and "error: no such thing" in said[-1]
    assert not (tmp_path / "current").exists()
    assert not one.due(Counts(39, 39, 3)) and one.due(Counts(40, 40, 3))
    assert learner(tmp_path).last.state == "failed"


def test_a_version_that_is_always_killed_is_given_up(tmp_path):
    one = learner(tmp_path, wait=30)
    one._set(replace(one._versions.begin(20, 20), tries={"value": TRIES}))
    play(one, Counts(20, 20, 3), lambda: one.last.state == "failed")
    assert one.last.why == f"value was ended {TRIES} times"


def test_a_kill_between_publishing_and_pointing_is_mended(tmp_path):
    versions = Versions(tmp_path)
    for number in (1, 2):
        version = versions.begin(20 * number, 20 * number)
        run = versions.path(version) / "value-run" / "value"
        run.mkdir(parents=True)
        if number == 1:
            versions.publish(version, [("value", "value")])
        else:
            os.replace(run, versions.path(version) / "value")
            versions.write(replace(version, state="served"))
    assert os.readlink(tmp_path / "current") == "versions/0001"
    learner(tmp_path)
    assert os.readlink(tmp_path / "current") == "versions/0002"
    missing = versions.begin(60, 60)
    with pytest.raises(InputError, match="value-run/value is missing"):
        versions.publish(missing, [("value", "value")])


def test_two_commands_of_a_version_run_in_order(tmp_path):
    one = learner(tmp_path, parts=("first", "value"))
    play(one, Counts(20, 20, 3), lambda: one.last and one.last.state == "served")
    assert one.last.tries == {"first": 1, "value": 1}
