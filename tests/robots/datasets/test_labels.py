"""`--success`: all, last-reward, a file, a function; labels beside a dataset."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
from lerobot_examples import FPS, write

from offline.data.episodes import Episode
from offline.errors import InputError
from robots.datasets.labels import Label, labelled, labels_text, read_labels
from robots.datasets.memory import EpisodeList
from robots.datasets.open import open_dataset


def silent(rewards=(0.0, 0.0, 0.0), *, terminated=False, success=None) -> Episode:
    steps = len(rewards)
    return Episode(
        {"state": np.arange(steps + 1, dtype=np.float32)[:, None]},
        np.zeros((steps, 1), np.float32),
        np.array(rewards, np.float32),
        terminated,
        success,
    )


def three(**options) -> EpisodeList:
    return EpisodeList(
        [silent(), silent((0, 0, 0, 1.0)), silent((1.0, 0), terminated=True, success=True)],
        splits={"train": [0, 2], "valid": [1]},
        meta=options,
    )


def outcomes(episodes) -> list[tuple[bool | None, bool, int]]:
    return [(e.success, e.terminated, len(e)) for e in (episodes[i] for i in range(len(episodes)))]


def test_all_succeeded_or_those_whose_last_reward_says_so():
    assert outcomes(labelled(three())) == [(None, False, 3), (None, False, 4), (True, True, 2)]
    assert outcomes(labelled(three(), "all")) == [(True, True, 3), (True, True, 4), (True, True, 2)]
    judged = labelled(three(content_hash="x"), "last-reward")
    # the last one ended by a success that it is now said not to be, so it was cut off
    assert outcomes(judged) == [(False, False, 3), (True, True, 4), (False, False, 2)]
    assert "content_hash" not in judged.meta and judged.lengths.tolist() == [3, 4, 2]


def test_a_file_says_leaves_out_and_marks_the_moment(tmp_path, caplog):
    path = tmp_path / "mine.csv"
    path.write_text("episode,success,moment\n0,,\n1,1,0.25\n")
    with caplog.at_level(logging.WARNING):
        found = labelled(three(fps=10), str(path))
    # 0 was skipped; 1 succeeded within its third step; 2 keeps what the dataset says
    assert outcomes(found) == [(True, True, 3), (True, True, 2)]
    assert found.lengths.tolist() == [3, 2]
    assert found[0].obs["state"][:, 0].tolist() == [0, 1, 2, 3]
    assert {name: rows.tolist() for name, rows in found.splits.items()} == {
        "train": [1],
        "valid": [0],
    }
    assert "2 successes and 0 failures; left out: 1 skipped, 0 without a label" in caplog.text
    path.write_text("episode,success\n2,0\n")
    caplog.clear()
    assert outcomes(labelled(three(), str(path))) == [(False, False, 2)]
    assert "left out: 0 skipped, 2 without a label" in caplog.text
    path.write_text("episode,success,moment\n0,0,0.1\n2,1,99\n")
    assert outcomes(labelled(three(fps=10), str(path))) == [(False, False, 3), (True, True, 2)]


def test_labels_beside_a_dataset_are_taken_up_and_said(tmp_path, caplog):
    write(tmp_path)
    assert [e[0] for e in outcomes(open_dataset(tmp_path))] == [True, False, True]
    (tmp_path / "labels.csv").write_text(
        labels_text({2: Label(None), 0: Label(False), 1: Label(True, 2 / FPS)})
    )
    with caplog.at_level(logging.WARNING):
        found = open_dataset(tmp_path)
    assert [(success, steps) for success, _, steps in outcomes(found)] == [(False, 3), (True, 2)]
    assert "labels.csv" in caplog.text
    assert [e[0] for e in outcomes(open_dataset(tmp_path, success="all"))] == [True] * 3


def test_a_function_judges_each_episode_once(tmp_path, monkeypatch, caplog):
    (tmp_path / "their_judges.py").write_text(
        "calls = []\n"
        "def long(episode):\n"
        "    calls.append(len(episode))\n"
        "    return None if len(episode) == 2 else len(episode) > 3\n"
        "def wrong(episode): return 1\n"
        "def fails(episode): return episode.nothing\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        found = labelled(three(), "their_judges:long")
        assert outcomes(found) == [(False, False, 3), (True, True, 4)] and outcomes(found)
        assert sys.modules["their_judges"].calls == [3, 4, 2]
        assert "left out 1 of 3" in caplog.text
        for name, said in [
            ("wrong", "returned 1 for episode 0, expected True, False"),
            ("fails", "failed on episode 0: AttributeError"),
            ("number", "is a int, expected a function"),
            ("nobody", 'there is no "nobody"'),
        ]:
            with pytest.raises(InputError, match=said):
                labelled(three(), f"their_judges:{name}")
    finally:
        sys.modules.pop("their_judges", None)


def test_what_is_no_label_is_refused_by_line(tmp_path):
    path = tmp_path / "labels.csv"
    head = "episode,success,moment\n"
    for text, said in [
        ("", 'begins with "", expected the header "episode,success,moment"'),
        ("a,b\n", 'begins with "a,b"'),
        (head + "0,1,\n0,0,\n", "line 3: episode 0 is labelled twice"),
        (head + "-1,1,\n", 'line 2: the episode is "-1"'),
        (head + "0,yes,\n", 'line 2: success is "yes", expected 1, 0 or nothing'),
        (head + "0,1,nan\n", 'line 2: the moment is "nan"'),
        (head + "0,1,-3\n", 'line 2: the moment is "-3"'),
        (head + "0,1,2,3\n", "line 2 has 4 entries"),
        (head + "7,1,\n", "labels episode 7, which the dataset does not have; it has 3 episodes"),
        (head + "0,1,0.1\n", "does not say how many steps a second has"),
        (head + "0,,\n1,,\n2,,\n", "leave out every episode"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            labelled(three(), str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read the labels"):
        read_labels(path)
    with pytest.raises(InputError, match="No such file"):
        labelled(three(), str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match='--success takes all, last-reward.*received "some"'):
        labelled(three(), "some")


def test_labels_are_read_as_they_were_written(tmp_path):
    labels = {3: Label(True, 1.25), 1: Label(None), 20: Label(False, None)}
    (tmp_path / "l.csv").write_text(labels_text(labels))
    assert read_labels(tmp_path / "l.csv") == labels


def test_rewards_that_are_not_there_judge_nothing(tmp_path):
    episode = silent()
    episode.meta["rewards"] = "missing, read as 0"
    with pytest.raises(InputError, match="last-reward needs rewards"):
        labelled(EpisodeList([episode]), "last-reward")[0]


class Recorded(EpisodeList):
    """Says of each episode what the robot said, as a recording does."""

    def success_of(self, index):
        return self[index].success


def test_episodes_of_a_recording_of_which_nobody_said_anything_are_left_out(caplog):
    said = [silent(success=True), silent(), silent((0, 0), success=False)]
    with caplog.at_level(logging.WARNING):
        found = labelled(Recorded(said, meta={"path": "rec"}))
    assert outcomes(found) == [(True, True, 3), (False, False, 2)]
    assert "rec: left out 1 of 3 episodes, of which nobody has said" in caplog.text
    assert len(labelled(Recorded([silent(), silent()]))) == 2  # nobody said anything at all
    assert len(labelled(Recorded(said), "all")) == 3
    assert len(labelled(EpisodeList(said))) == 3  # no recording
