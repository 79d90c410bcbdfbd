"""Newer versions: numbers, what is kept, what a restart knows."""

from __future__ import annotations

import csv
import shutil

import torch
from fake_servers import SHAPES, SPEC

from genpol.deployed.choice import Choice, load_choice, mark_of
from genpol.deployed.judging import Verdict
from genpol.deployed.watch import Watch, read_numbers
from offline.critics.value import ValueFunction


def save(folder, seed, **meta):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ValueFunction(SPEC, SHAPES, hidden=(4,), meta=meta).eval().save(folder / "value")


def watching(folder, verdicts=None, **options):
    said = []
    judge = None if verdicts is None else lambda newer, present: verdicts.pop(0)
    made = Watch(
        folder, Choice(), lambda choice, name: name, judge=judge, say=said.append, **options
    )
    return made, said


def test_a_worse_one_is_not_served_and_not_asked_about_again(tmp_path):
    worse, better = Verdict(9, 0.4, 0.8, 0.1), Verdict(9, 0.9, 0.8, 0.1)
    watch, said = watching(tmp_path / "run", [worse, better], log=tmp_path / "record")
    assert watch.newest() == "0" and not watch.look()
    save(tmp_path / "run", 1)
    assert not watch.look() and watch.look()  # it stands still for two looks
    first = watch.newest()
    save(tmp_path / "run", 2)
    assert [watch.look() for _ in range(4)] == [False] * 4
    assert watch.newest() == first and said[-1].startswith(f"kept version {first}: the newer one")
    save(tmp_path / "run", 3)
    assert [watch.look() for _ in range(3)] == [False, True, False]
    assert watch.newest().startswith("3-")
    with open(tmp_path / "record" / "versions.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["version"][:2] for row in rows] == ["1-", "2-", "3-"]
    assert [row["served"] for row in rows] == ["1", "0", "1"]
    assert [row["auc"] for row in rows] == ["", "0.4000", "0.9000"]
    # After a restart versions keep their numbers, and new ones go on from them.
    again, _ = watching(tmp_path / "run", log=tmp_path / "record")
    assert again.newest() == watch.newest()
    save(tmp_path / "run", 4)
    again.look(), again.look()
    assert again.newest().startswith("4-")


def test_a_mark_is_of_what_is_finished(tmp_path):
    assert mark_of(tmp_path) is None
    save(tmp_path, 1, unfinished="3 of 9 steps")
    assert mark_of(tmp_path) is None
    save(tmp_path, 1)
    mark = mark_of(tmp_path)
    assert mark is not None and load_choice(tmp_path).mark == mark
    assert mark_of(tmp_path / "value") == mark
    (tmp_path / "value" / "config.json").write_text("{")
    assert mark_of(tmp_path) is None
    shutil.rmtree(tmp_path / "value")
    assert mark_of(tmp_path) is None


def test_a_torn_log_is_no_obstacle(tmp_path):
    log = tmp_path / "versions.csv"
    assert read_numbers(log) == {}
    log.write_text("time,version,served\n1,2-abcd1234,1\n1,x-y,1\n1,7-")
    assert read_numbers(log) == {"abcd1234": 2}


def test_the_thread_goes_on_after_an_error(tmp_path):
    watch, said = watching(tmp_path / "run", every=0.01)
    looks = []

    def look():
        looks.append(1)
        if len(looks) == 1:
            raise RuntimeError("a disk that went away")
        watch._stop.set()

    watch.look = look
    watch.start()
    watch._thread.join(10)
    assert len(looks) == 2 and said == [f"{tmp_path / 'run'}: RuntimeError: a disk that went away"]
    watch.close()
    assert watch.closed
