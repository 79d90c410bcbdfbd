"""The page of a run: numbers by version, the line of success, and nothing that breaks it."""

from __future__ import annotations

from genpol.improving.chart import chart, moving_mean, stretches
from genpol.improving.learner import Counts
from genpol.improving.report import report
from genpol.improving.seen import Seen, counts_of
from genpol.improving.versions import Version


def test_the_line_is_the_mean_of_the_latest():
    assert moving_mean([True, False, False, True], window=2) == [1.0, 0.5, 0.0, 0.5]
    assert stretches(["0", "0", "1", "0"]) == [("0", 0, 2), ("1", 2, 3), ("0", 3, 4)]
    assert chart([], []) == ""


SEEN = [
    Seen(0, True, "", 12, ended="success"),
    Seen(1, False, "", 9),
    Seen(2, None, "", 3, ended="closed"),
    Seen(3, True, "1 <b>", 9, by_hand=4, dropped=2),
]


def test_the_page_says_success_by_version_and_escapes():
    text = report(
        SEEN, [Version(1, 2, 3, "served", 70.0, 60.0), Version(2, 3, 4, "failed", why="no <x>")],
        now="It waits.", address="ws://127.0.0.1:8000", restarts=3, command="genpol improve",
    )  # fmt: skip
    assert "<td>0 (the policy alone)</td><td>2</td><td>1</td><td>50%</td>" in text
    assert "<td>1 &lt;b&gt;</td><td>1</td><td>1</td><td>100%</td>" in text
    assert "<b>" not in text and "no &lt;x&gt;" in text and "no label" in text
    assert "4 episodes were recorded, 3 of them have a label, 2 succeeded. 4 steps" in text
    assert "started again 3 times" in text and text.count("<circle") == 3
    assert counts_of(SEEN) == Counts(4, 3, 2)


def test_a_page_of_nothing_is_a_page():
    text = report([], [], now="", address="", restarts=0, command="")
    assert "No episode has a label yet." in text and "No episode has ended yet." in text
