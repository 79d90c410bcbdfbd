"""The result's numbers, the advice in each case, and the page."""

from __future__ import annotations

import re

import numpy as np
import pytest

from genpol.reports.videos import write_video
from genpol.steering.report import auc, write_report
from genpol.steering.result import ArmResult, SteerResult
from offline.errors import InputError


def arm(wins: int, n: int = 40, **rest) -> ArmResult:
    """The first `wins` of n episodes succeed."""
    success = np.arange(n) < wins
    return ArmResult(success, -np.ones(n), np.full(n, 30), np.arange(n), **rest)


def result(base: int = 10, steered: int = 30, **others: int) -> SteerResult:
    arms = {"base": arm(base), "steered": arm(steered)}
    return SteerResult(arms | {name: arm(wins) for name, wins in others.items()})


def test_the_summary_by_hand():
    found = result(10, 30, mode=20, random=8)
    found.latency = {"base": [0.001, 0.002, 0.009], "steered": [0.002, 0.003, 0.004]}
    numbers = found.summary()
    assert numbers["steer/success_base"] == 0.25 and numbers["steer/success_steered"] == 0.75
    assert numbers["steer/success_mode"] == 0.5 and numbers["steer/success_random"] == 0.2
    assert numbers["steer/difference"] == 0.5
    assert numbers["steer/p_value"] == pytest.approx(2 * 0.5**20)  # 20 against 0
    assert numbers["steer/latency_ratio"] == pytest.approx(1.5)  # of medians
    assert numbers["steer/latency_p50_ms"] == pytest.approx(3.0)
    assert numbers["steer/episodes"] == 40
    for name in ("success_base", "success_steered", "success_mode", "success_random", "difference"):
        low, high = numbers[f"steer/{name}_low"], numbers[f"steer/{name}_high"]
        assert low < numbers[f"steer/{name}"] < high
    assert all(isinstance(value, float) for value in numbers.values())


def test_the_summary_is_reproducible():
    assert result().summary() == result().summary()


@pytest.mark.parametrize(
    ("wins", "words"),
    [
        ({"base": 10, "steered": 30, "mode": 35}, "mode decoding beats steering here.*use it"),
        ({"base": 10, "steered": 30, "mode": 30}, "as well as steering.*use it"),
        ({"base": 10, "steered": 30, "mode": 20}, r"^steer: success 25% to 75%"),
        ({"base": 10, "steered": 12, "mode": 2}, "no clear gain.*more --episodes"),
        ({"base": 30, "steered": 10, "mode": 2}, "do not steer.*it harms"),
        ({"base": 12, "steered": 10, "mode": 2}, "do not steer.*does not help"),
        ({"base": 10, "steered": 30, "filtered": 36}, "clone of the successful.*better"),
        ({"base": 10, "steered": 30}, "^steer:"),
        ({"base": 0, "steered": 0, "mode": 0}, "no clear gain"),
    ],
)
def test_the_advice_follows_the_arms(wins, words):
    assert re.search(words, result(**wins).advice())


def test_a_medoid_is_not_called_mode_decoding():
    found = result(10, 30, mode=35)
    found.mode_kind = "medoid"
    assert "medoid" in found.advice() and "mode decoding" not in found.advice()


def test_arms_on_other_initial_states_are_refused():
    other = arm(5)
    other.seeds = other.seeds + 1
    with pytest.raises(InputError, match="'steered'.*different initial states"):
        SteerResult({"base": arm(5), "steered": other})
    with pytest.raises(InputError, match="'steered' is missing"):
        SteerResult({"base": arm(5)})


def test_how_often_success_ranks_above_failure():
    scores, won = np.array([1.0, 2.0, 3.0, 3.0]), np.array([False, True, False, True])
    assert auc(scores, won) == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert auc(scores, np.ones(4, bool)) is None


def test_the_page_holds_everything_and_points_nowhere(tmp_path):
    found = result(10, 30, mode=20, random=8, filtered=25)
    found.arms["steered"].scores = np.linspace(5, -5, 40)
    found.arms["steered"].spread = 0.43
    found.latency = {"base": [0.001, 0.002], "steered": [0.002, 0.003]}
    found.title, found.settings = "clone on <push>", {"K": 32}
    found.diversity = "all 32 proposals are identical"
    film = np.zeros((4, 32, 32, 3), np.uint8)
    path = write_video(tmp_path / "videos" / "0.mp4", film)
    found.videos = [("Episode 0", str(path.relative_to(tmp_path))), ("Episode 1", "gone.mp4")]
    page = write_report(found, tmp_path).read_text("utf-8")
    for words in (
        "Steer: success 25% to 75%",
        "75.0 [",
        "steered against base",
        "<td>10</td><td>0</td><td>20</td><td>10</td>",
        "proposals are identical",
        "Steering clone on &lt;push&gt;",
        "in 100% of all such pairs",
        "gone.mp4 is missing",
        "K 32",
    ):
        assert words in page
    assert "<video" in page and "http" not in page
    assert page.count("<h2>") == 6


def test_a_page_without_scores_latency_or_films(tmp_path):
    page = write_report(result(), tmp_path).read_text("utf-8")
    assert page.count("<h2>") == 3
