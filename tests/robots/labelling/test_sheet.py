"""The file of labels while several write it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from toy_data import ListEpisodes, episode, spec

from offline.errors import InputError
from robots.datasets.labels import Label
from robots.labelling.judged import all_succeeded, compare, judge_open
from robots.labelling.sheet import Sheet, sheet_of


def write(path: Path, first: int) -> None:
    sheet = Sheet(path)
    for number in range(first, first + 20):
        sheet.put(number, Label(number % 2 == 0))


def test_two_processes_lose_no_label(tmp_path):
    path, context = tmp_path / "labels.csv", multiprocessing.get_context("fork")
    both = [context.Process(target=write, args=(path, first)) for first in (0, 20)]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    assert [one.exitcode for one in both] == [0, 0]
    assert Sheet(path).read() == {number: Label(number % 2 == 0) for number in range(40)}
    assert [found.name for found in tmp_path.iterdir()] == ["labels.csv"]


def test_a_change_keeps_what_an_editor_wrote(tmp_path):
    path = tmp_path / "labels.csv"
    sheet = Sheet(path)
    assert sheet.put(3, Label(True, 0.25))
    assert path.read_text() == "episode,success,moment\n3,1,0.25\n"
    path.write_text("episode,success\n1,0\n3,1\n")
    assert sheet.put(2, Label(None))
    assert path.read_text() == "episode,success,moment\n1,0,\n2,,\n3,1,\n"
    assert sheet.put_new({1: Label(True), 2: Label(True)}) == 0
    assert not sheet.put(1, Label(False))
    assert sheet.put(1, None) and not sheet.put(1, None)
    assert sheet.read() == {2: Label(None), 3: Label(True)}


def test_a_file_of_something_else_is_refused_and_left(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("time,loss\n0,1\n")
    with pytest.raises(InputError, match="expected the header"):
        Sheet(path)
    path.unlink()
    sheet = Sheet(path)
    path.write_text("time,loss\n0,1\n")
    with pytest.raises(InputError, match="expected the header"):
        sheet.put(0, Label(True))
    assert path.read_text() == "time,loss\n0,1\n"
    with pytest.raises(InputError, match="--labels"):
        Sheet(tmp_path / "nowhere" / "labels.csv").put(0, Label(True))


def test_where_labels_belong(tmp_path):
    data = ListEpisodes([episode(2)], spec())
    data.meta = {"path": str(tmp_path)}
    assert sheet_of(data, "x") == tmp_path / "labels.csv"
    data.meta = {"path": str(tmp_path / "demos.hdf5")}
    assert sheet_of(data, "x") == tmp_path / "demos.labels.csv"
    data.meta = {}
    assert sheet_of(data, "minari:toy") == Path("minari:toy.labels.csv")


# -- judges


def by_length(found, index):
    return None if len(found) == 4 else len(found) < 4


def data(*lengths):
    return ListEpisodes([episode(steps) for steps in lengths], spec())


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_judge_labels_what_is_open(tmp_path, parallel):
    sheet = Sheet(tmp_path / "labels.csv")
    sheet.put(0, Label(False, 0.1))  # a person's word stays
    done = judge_open(data(2, 3, 4, 5, 3), sheet, by_length, parallel=parallel)
    assert (done.successes, done.failures, done.silent) == (2, 1, 1)
    assert sheet.read() == {0: Label(False, 0.1), 1: Label(True), 3: Label(False), 4: Label(True)}


def test_a_judge_that_fails_loses_nothing_it_said(tmp_path):
    def judge(found, index):
        if index == 2:
            raise InputError("the judge is gone")
        return True

    sheet = Sheet(tmp_path / "labels.csv")
    with pytest.raises(InputError, match="gone"):
        judge_open(data(2, 2, 2, 2), sheet, judge)
    assert sheet.read() == {0: Label(True), 1: Label(True)}


def test_a_label_given_meanwhile_stays(tmp_path):
    sheet = Sheet(tmp_path / "labels.csv")

    def judge(found, index):
        sheet.put(index, Label(False))  # a person was quicker
        return True

    judge_open(data(2), sheet, judge)
    assert sheet.read() == {0: Label(False)}


def test_all_that_is_open_succeeded(tmp_path):
    sheet = Sheet(tmp_path / "labels.csv")
    sheet.put(1, Label(False))
    assert all_succeeded(data(2, 2, 2), sheet).successes == 2
    assert sheet.read() == {0: Label(True), 1: Label(False), 2: Label(True)}


def test_how_often_a_judge_agrees(tmp_path):
    sheet = Sheet(tmp_path / "labels.csv")
    for index, success in enumerate((True, False, True, False, True, None)):
        sheet.put(index, Label(success))
    before = sheet.path.read_bytes()
    found = compare(data(3, 3, 5, 5, 4, 2, 2), sheet, by_length)
    assert (found.successes_found, found.successes_missed) == (1, 1)
    assert (found.failures_found, found.failures_missed, found.silent) == (1, 1, 1)
    assert sheet.path.read_bytes() == before
