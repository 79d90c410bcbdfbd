"""Journals, and the episodes that they are assembled to: numbers counted by hand."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
import pytest
from doc_blocks import ROOT, blocks
from recordings import (
    SPEC,
    add_journals,
    converted,
    decided,
    journal_of,
    play,
    record,
    unconverted,
)

from offline.data.transitions import Transitions
from offline.errors import InputError
from robots.datasets.open import open_dataset
from robots.datasets.recorded import RecordedEpisodes
from robots.recording import recorder as recorder_module
from robots.recording.assemble import assemble
from robots.recording.convert import convert
from robots.recording.features import feature_name, split_message
from robots.recording.folder import RecordingFolder
from robots.recording.journal import Journal, read_journal
from robots.recording.recorder import Recorder
from robots.serving.told import Told


def rows(count, value=9.0):
    return np.full((count, 3), value, np.float32)


def episode_of(tmp_path, tell):
    """The only episode of a conversation: `tell(listener, observe)`."""
    recorder = unconverted(tmp_path / "rec")
    listener = recorder.listener()

    def observe(state, **said):
        message = {"state": np.array([state])}
        if said:
            listener.told(Told(**said), message)
        listener.decided(message, decided(state))

    tell(listener, observe)
    recorder.close()
    add_journals(tmp_path / "rec")
    return RecordedEpisodes(tmp_path / "rec")


def test_a_torn_record_ends_a_journal_and_nothing_before_it_is_lost(tmp_path):
    path = journal_of(tmp_path / "a.journal", {"kind": "begin"}, {"n": 1}, {"n": np.ones(3)})
    whole = path.read_bytes()
    assert [record.get("n", "begin") for _, record in read_journal(path)][:2] == ["begin", 1]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        kept = [record for _, record in read_journal(path)]
        assert len(kept) == sum(cut >= place for place in ends(whole))
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    path.write_bytes(bytes(damaged))
    assert len(list(read_journal(path))) == 2


def ends(whole):
    found, place = [], 0
    while place < len(whole):
        place += 8 + int.from_bytes(whole[place : place + 4], "little")
        found.append(place)
    return found


def test_a_write_that_fails_halfway_is_taken_back(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "a.journal")
    journal.append({"n": 1})
    real = journal._file

    class Full:
        def write(self, data):
            if len(data) < 20:
                raise OSError(28, "No space left on device")
            return real.write(data[: len(data) // 2])

        def __getattr__(self, name):
            return getattr(real, name)

    journal._file = Full()
    with pytest.raises(OSError, match="No space"):
        journal.append({"n": 2, "long": "x" * 100})
    journal._file = real
    journal.append({"n": 3})
    journal.close()
    assert [record["n"] for _, record in read_journal(journal.path)] == [1, 3]


def test_an_answer_is_executed_whole_unless_the_robot_tells(tmp_path):
    def tell(listener, observe):
        observe(0.0)  # whole: 2 steps
        observe(1.0, reward=0.5)  # the robot tells later: 1 step
        observe(2.0, executed=rows(1))  # nothing of it
        observe(3.0, executed=rows(0), reward=2.0)  # a human did 3 steps
        listener.told(Told(executed=rows(3, 7.0), intervention=True, alone=True), {})
        listener.told(Told(success=True), {"state": np.array([4.0])})

    episode = episode_of(tmp_path, tell)[0]
    np.testing.assert_allclose(episode.actions[:, 0], [0.2, 0.2, 9, 7, 7, 7], atol=1e-6)
    np.testing.assert_allclose(episode.rewards, [0, 0.5, 2, 0, 0, 0])
    np.testing.assert_allclose(episode.obs["state"][:, 0], [0, 0, 1, 3, 3, 3, 4])
    assert episode.observed.tolist() == [True, False, True, True, False, False, True]
    assert episode.meta["intervention"] == [False, False, False, True, True, True]
    assert episode.success is True and episode.terminated and episode.meta["ended"] == "success"


def test_decisions_hold_candidates_scores_and_what_was_executed(tmp_path):
    def tell(listener, observe):
        observe(0.0)
        observe(1.0)
        listener.told(Told(executed=rows(1), intervention=True, reset=True), {})

    found = episode_of(tmp_path, tell).decisions(0)
    assert found.frames.tolist() == [0, 2] and found.steps.tolist() == [2, 1]
    assert found.intervention.tolist() == [False, True] and found.observed.all()
    np.testing.assert_allclose(found.candidates[1][:, 0, 0], [1.0, 1.1, 1.2])
    np.testing.assert_allclose(found.scores[0], [0, 1, 2])
    assert found.chosen.tolist() == [2, 2] and found.versions == ["v1", "v1"]
    np.testing.assert_allclose(found.answers[1], found.candidates[1][2])
    np.testing.assert_allclose(found.executed[1], rows(1))
    np.testing.assert_allclose(found.latencies, 0.25)


@pytest.mark.parametrize(
    ("told", "success", "ended", "rewards"),
    [
        ({"reset": True}, None, "reset", [0, 0]),
        ({"success": True, "alone": True}, True, "success", [0, 1]),
        ({"success": False, "alone": True}, False, "success", [0, 0]),
        ({"reward": 3.0, "alone": True}, None, "reward", [0, 3]),
        ({"reset": True, "success": False, "reward": 0.5}, False, "success", [0, 0.5]),
    ],
)
def test_what_ends_an_episode_and_what_is_said_of_it(tmp_path, told, success, ended, rewards):
    def tell(listener, observe):
        observe(0.0)
        listener.told(Told(**told), {})

    episodes = episode_of(tmp_path, tell)
    assert episodes[0].success is success and episodes.facts(0).ended == ended
    assert episodes[0].rewards.tolist() == rewards
    assert episodes[0].terminated is (success is True)


def test_a_client_that_goes_away_ends_its_episode_and_a_crash_is_told_apart(tmp_path):
    episodes = converted(tmp_path / "rec", {"states": [1, 2]})
    assert episodes.facts(0).ended == "reset"
    records = [
        {"kind": "begin", "id": "x", "started": 1.0},
        {"kind": "decision", "time": 1.0, "latency": 0.1, "obs": {}, "prompt": "",
         "candidates": np.zeros((1, 2, 3)), "scores": np.zeros(0), "chosen": 0,
         "answer": np.zeros((2, 3)), "version": ""},
    ]  # fmt: skip
    crashed = assemble(enumerate(records), "name")
    assert crashed.ended == "lost" and len(crashed.actions()) == 2
    assert assemble(enumerate(records[:1]), "name") is None  # nothing was executed


def test_no_transition_starts_or_ends_where_nothing_was_observed(tmp_path):
    """Decisions at 0, 2, 4 and 6 of 8 steps; the last observation is missing."""
    episodes = converted(tmp_path / "rec", {"states": [0, 1, 2, 3]})
    table = Transitions(episodes, 2, reward="none", split=None)
    assert sorted(next(table.batches(99)).obs["state"][:, 0].tolist()) == [0, 1, 2]
    won = converted(tmp_path / "won", {"states": [0, 1], "told": Told(success=True, alone=True)})
    batch = next(Transitions(won, 2, split=None).batches(99))
    assert batch.obs["state"][:, 0].tolist() == [0, 1] and batch.discount.tolist()[1] == 0


def test_the_example_of_the_page_reads_a_recording(tmp_path):
    converted(tmp_path / "rec", {"states": [1, 2]}, {"states": [3]})
    (block,) = [b for b in blocks(ROOT / "docs/ROBOTS.md", "python") if "Recorded" in b.text]
    names: dict = {}
    exec(compile(block.text, "docs/ROBOTS.md", "exec"), names)
    assert names["agreement"](str(tmp_path / "rec")) == [1.0, 1.0]


def test_keys_of_messages_are_stored_under_lerobots_names():
    for key in ("observation/state", "observation.state", "state"):
        assert feature_name(key) == "observation.state"
    assert feature_name("images/top") == "observation.images.top"
    message = {
        "observation/qpos": np.arange(3),
        "observation": {"images": {"top": np.zeros((3, 16, 24), np.uint8)}},
        "depth": np.zeros((100, 100)),
        "note": "words",
        "prompt": "push",
        "gripper": 0.5,
    }
    vectors, pictures, prompt, left = split_message(message, {"observation/qpos": "state"})
    assert sorted(vectors) == ["observation.gripper", "observation.state"] and prompt == "push"
    assert list(pictures) == ["observation.images.top"] and sorted(left) == ["depth", "note"]


def test_a_recording_goes_on_and_other_robots_are_refused(tmp_path):
    folder = tmp_path / "rec"
    converted(folder, {"states": [1, 2], "prompt": "push"})
    episodes = converted(folder, {"states": [3], "prompt": "pull"}, {"states": [4]})
    assert episodes.lengths.tolist() == [4, 2, 2]
    assert [episodes[i].language for i in range(3)] == ["push", "pull", "push"]
    assert isinstance(open_dataset(folder), RecordedEpisodes)
    assert episodes.spec.names == SPEC.names and episodes.spec.high == (1, 2, 4)
    with pytest.raises(InputError, match="at 10 per second, this server A=3 at 5"):
        Recorder(folder, SPEC, 5.0)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds something else"):
        Recorder(other, SPEC, 10.0)
    empty = Recorder(tmp_path / "new", SPEC, 10.0)
    empty.close()
    with pytest.raises(InputError, match="no episode has ended yet"):
        open_dataset(tmp_path / "new")


def test_numbers_that_are_none_are_recorded_as_0_and_said(tmp_path, caplog):
    recorder = unconverted(tmp_path / "rec")
    listener = recorder.listener()
    force = np.array([1.0, np.nan, -np.inf, 1e300])
    listener.decided({"state": np.ones(1), "force": force, "prompt": np.array("go")}, decided(0.0))
    recorder.close()
    add_journals(tmp_path / "rec")
    episode = RecordedEpisodes(tmp_path / "rec")[0]
    assert episode.obs["force"][0].tolist() == [1, 0, 0, 0] and episode.language == "go"
    assert 'observation.force" has NaN or infinite values' in caplog.text


def test_pictures_are_films_and_come_back_in_their_order(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    told = Told(success=True)
    folder = tmp_path / "rec"
    recorder = unconverted(folder)
    listener = recorder.listener()
    play(listener, [3, 6, 9], pictures=True, told=told)
    recorder.close()
    add_journals(folder)
    episode = RecordedEpisodes(folder, videos=True)[0]
    means = episode.obs["images.top"].mean((1, 2, 3))
    assert np.abs(means - [30, 30, 60, 60, 90, 90, 90]).max() < 6
    assert episode.obs["images.top"].dtype == np.uint8


def test_observations_that_would_wait_too_long_are_dropped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "WAITING", 40)  # bytes: two observations of 16
    stalled = threading.Event()
    recorder = unconverted(tmp_path / "rec", patience=0.0)
    recorder.submit(stalled.wait)
    play(recorder.listener(), [1, 2, 3, 4])
    assert recorder.counts["dropped"] == 2
    stalled.set()
    recorder.close()
    add_journals(tmp_path / "rec")
    episodes = RecordedEpisodes(tmp_path / "rec")
    assert episodes.facts(0).dropped == 2 and episodes.lengths.tolist() == [8]
    found = episodes.decisions(0)
    assert found.observed.tolist() == [True, True, False, False]
    np.testing.assert_allclose(found.candidates[3][0, 0, 0], 0.4)  # what was decided is kept
    assert episodes[0].obs["state"][:, 0].tolist() == [1, 1, 2, 2, 2, 2, 2, 2, 2]


def test_a_full_folder_records_nothing_more_and_says_so(tmp_path, caplog):
    recorder = record(tmp_path / "rec", {"states": [1]}, limit=1)
    assert recorder.counts["unrecorded"] and "has reached its limit" in caplog.text
    assert not list((tmp_path / "rec").rglob("*.journal"))


def test_an_episode_of_another_robot_is_put_aside(tmp_path):
    folder = tmp_path / "rec"
    converted(folder, {"states": [1]})
    recorder = unconverted(folder)
    listener = recorder.listener()
    listener.decided({"state": np.ones(5)}, decided(0.0))
    recorder.close()
    (journal,) = (folder / "genpol" / "open").iterdir()
    said = convert(RecordingFolder(folder), journal)
    assert 'has "observation.state" of shape (5,), the episodes before it (2,)' in said["why"]
    assert (folder / "genpol" / "refused" / journal.name).is_file() and not journal.exists()
    assert len(RecordedEpisodes(folder)) == 1


def test_what_a_crash_left_is_converted_once(tmp_path):
    """Whatever the converting process was killed after, no episode is lost or there twice."""
    folder = tmp_path / "rec"
    recorder = unconverted(folder)
    listener = recorder.listener()
    listener.decided({"state": np.ones(2)}, decided(0.0))
    listener.decided({"state": np.zeros(2)}, decided(0.1))
    listener.close()
    recorder.close()
    (journal,) = (folder / "genpol" / "open").iterdir()
    kept = journal.read_bytes()
    for last in ("data", "decisions", "tasks", "episodes", "info"):
        shutil.rmtree(folder / "meta", ignore_errors=True)
        journal.write_bytes(kept)
        target = RecordingFolder(folder)
        die_after(target, last)
        with pytest.raises(KeyboardInterrupt):
            convert(target, journal)
        convert(RecordingFolder(folder), journal)
        episodes = RecordedEpisodes(folder)
        assert episodes.lengths.tolist() == [4] and episodes.facts(0).ended == "closed"
        info = json.loads((folder / "meta" / "info.json").read_text())
        assert info["total_frames"] == 4 and not journal.exists()


def die_after(target, last):
    """Have the conversion end at the moment when `last` is in place."""
    move, summaries = target._move, target._summaries

    def moved(scratch, place):
        move(scratch, place)
        if last in place.parts or place.stem == last:
            raise KeyboardInterrupt

    def summed():
        summaries()
        raise KeyboardInterrupt

    target._move = moved
    if last == "info":
        target._summaries = summed
