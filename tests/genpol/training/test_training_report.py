"""The page of a training run: its numbers by hand, every agent's columns, films, no success."""

from __future__ import annotations

import json

import numpy as np
import pytest
from training_runs import TINY, train

from genpol.reports.charts import known, read_log
from genpol.reports.stats import wilson
from genpol.reports.videos import write_video
from genpol.runs.metrics import MetricsCsv
from genpol.steering.paired_episodes import Rollouts
from genpol.training.curves import diagnostic_charts, evaluation_chart, pooled
from genpol.training.outcomes import read_outcomes, write_outcomes
from genpol.training.record import commands, read_run
from genpol.training.report import panels, write_page
from offline.errors import InputError

CONFIG = {
    "agent": "expo",
    "env": "metaworld/push-v3",
    "data": "demos <b>.hdf5",
    "base": "runs/clone",
    "value": None,
    "max_steps": None,
    "steps": 400,
    "utd": 4.0,
    "hidden": [256, 256],
    "clip_edits": False,
    "eval_episodes": 40,
    "seed": 3,
}


def rollouts(wins, n: int = 40) -> Rollouts:
    """The episodes `wins` succeed, after 30 steps; the others have 50."""
    success = np.isin(np.arange(n), list(wins))
    return Rollouts(
        seeds=np.arange(100, 100 + n),
        success=success,
        returns=success - 2.0,
        lengths=np.where(success, 30, 50),
        scores=np.zeros(n),
        fell_back=0.0,
        spread=0.0,
        recordings={},
    )


def evaluation(wins: int, n: int = 40) -> dict[str, float]:
    low, high = wilson(wins, n)
    return {
        "eval/success": wins / n,
        "eval/success_low": low,
        "eval/success_high": high,
        "eval/return": wins / n - 2,
        "eval/length": 40.0,
    }


def make_run(folder, first=10, last=30, *, success=True, **options):
    """A made-up run of 400 steps with an evaluation every 200."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | options))
    table = MetricsCsv(folder / "metrics.csv")
    for step in range(0, 401, 50):
        row = {"time/cpu_seconds": step / 2, "time/wall_seconds": float(step)}
        if step:
            row |= {"train/success": float(step > 200), "train/return": -1.0}
            row |= {"train/episodes": step / 10, "train/updates": 4.0 * step}
            row |= {"critic/q_data": step / 100, "edit/win_rate": 0.5}
        if step in (0, 200, 400):
            row |= evaluation({0: first, 200: 20, 400: last}[step])
            if not success:
                row |= dict.fromkeys(("eval/success", "eval/success_low"), float("nan"))
        table.log(step, row)
    table.close()
    return folder


def test_outcomes_are_read_as_they_were_written(tmp_path):
    for step, wins in ((2000, {1, 2}), (0, {1}), (2000, {1, 5})):  # the last replaces the first
        write_outcomes(rollouts(wins), tmp_path, step)
    found = read_outcomes(tmp_path)
    assert list(found) == [0, 2000]
    assert np.flatnonzero(found[2000].success).tolist() == [1, 5]
    for name in ("seeds", "success", "returns", "lengths"):
        assert (getattr(found[0], name) == getattr(rollouts({1}), name)).all()
    assert read_outcomes(tmp_path / "none") == {}


def test_the_verdict_by_hand(tmp_path):
    folder = make_run(tmp_path / "run")
    write_outcomes(rollouts(range(0, 10)), folder / "evaluations", 0)
    write_outcomes(rollouts(range(8, 38)), folder / "evaluations", 400)
    html = panels(folder)[0].html
    low, high = (100 * end for end in wilson(10, 40))
    assert f"25 % [{low:.0f}, {high:.0f}] before training" in html
    assert "before training, 75 % [" in html and "after 400 environment steps" in html
    assert (
        "28 failed before and succeed now, 8 succeeded before and fail now, 2 succeed and 2" in html
    )
    assert 'class="good"' in html  # 28 against 8: p = .001


@pytest.mark.parametrize(("last", "kind"), [(30, "good"), (14, "part"), (5, "part")])
def test_without_single_episodes_the_intervals_judge(tmp_path, last, kind):
    html = panels(make_run(tmp_path / "run", last=last))[0].html
    assert f'class="{kind}"' in html and "McNemar" not in html


def test_a_loss_is_no_gain_however_sure(tmp_path):
    folder = make_run(tmp_path / "run", 30, 5)
    write_outcomes(rollouts(range(30)), folder / "evaluations", 0)
    write_outcomes(rollouts(range(5)), folder / "evaluations", 400)
    assert 'class="part"' in panels(folder)[0].html


def test_episodes_of_several_rows_are_pooled():
    log = {
        "step": np.array([0.0, 1, 2, 3, 4, 5]),
        "train/episodes": np.array([np.nan, 0, 2, 6, 11, 12]),
        "train/success": np.array([np.nan, np.nan, 0.5, 1.0, 0.0, 1.0]),
    }
    steps, means = pooled(log, "train/success")
    assert steps.tolist() == [3, 4]  # 2 + 4 episodes, then 5; the last one alone is too few
    assert means == pytest.approx([(2 * 0.5 + 4 * 1.0) / 6, 0.0])
    assert len(pooled({"step": log["step"]}, "train/success")[0]) == 0


def test_the_page_holds_everything_and_points_nowhere(tmp_path):
    folder = make_run(tmp_path / "run")
    write_outcomes(rollouts({0}), folder / "evaluations", 0)
    write_outcomes(rollouts({0, 1}), folder / "evaluations", 400)
    for step in (0, 400):
        for i in (0, 1):
            path = folder / "videos" / f"step-{step:06d}-episode-{i}.mp4"
            write_video(path, np.zeros((3, 32, 32, 3), np.uint8))
    page = write_page(folder).read_text("utf-8")
    assert page.count("<h2>") == 5 and page.count("<video") == 4 and "http" not in page
    for words in (
        "expo on metaworld/push-v3",
        "demos &lt;b&gt;.hdf5",
        "layout 1, step 0: no success in 50 steps",
        "layout 1, step 400: success after 30 steps",
        "not chosen",
        "3.3 minutes of CPU time, 6.7 minutes of wall-clock time",
        "<td>1,600</td>",
    ):
        assert words in page, words
    assert "<b>" not in page  # what a user named is escaped


def test_films_are_chosen_by_outcome_only_when_asked_and_it_is_said(tmp_path):
    folder = make_run(tmp_path / "run")
    write_outcomes(rollouts({0}), folder / "evaluations", 0)
    write_outcomes(rollouts({0, 2}), folder / "evaluations", 400)
    (folder / "videos").mkdir()
    for step in (0, 400):
        for i in range(3):
            (folder / "videos" / f"step-{step:06d}-episode-{i}.gif").write_bytes(b"GIF")
    html = {panel.title: panel.html for panel in panels(folder, chosen=2)}[
        "The same layouts, before and after"
    ]
    assert "these were chosen" in html and html.count("<img") == 4
    assert html.index("layout 2") < html.index("layout 0") and "layout 1" not in html


def test_without_success_it_is_about_the_return(tmp_path):
    folder = make_run(tmp_path / "run", success=False)
    page = write_page(folder).read_text("utf-8")
    assert "Mean return on 40 layouts never trained on: -1.75 before training, -1.25" in page
    assert "Return on layouts" in page and "Wilson" not in page
    write_outcomes(rollouts({0}), folder / "evaluations", 0)
    write_outcomes(rollouts(range(40)), folder / "evaluations", 400)
    html = panels(folder)[0].html
    assert "changes by +0.975 on average" in html and 'class="good"' in html


def test_a_run_that_has_only_begun(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    table = MetricsCsv(folder / "metrics.csv")
    with pytest.raises(InputError, match="no evaluation to show yet"):
        write_page(folder)
    table.log(0, evaluation(10))
    table.close()
    assert "before training: 25 %" in write_page(folder).read_text("utf-8")
    assert diagnostic_charts(read_log(folder / "metrics.csv")) is None
    with pytest.raises(InputError, match="cannot read the training run"):
        read_run(tmp_path / "none")


def test_the_command_makes_the_same_run_again(tmp_path):
    from genpol.cli import main

    run = read_run(make_run(tmp_path / "run"))
    line = commands(run).split("\ngenpol")[0].replace("\\\n", " ")
    assert "--hidden 256 256" in line and "--no-clip-edits" in line and "--utd 4" in line
    assert "--value" not in line and "'demos <b>.hdf5'" in line
    import shlex

    words = shlex.split(line)[1:]
    assert main(words) == 2  # understood as far as its data, which there is none of


SLOWER = [pytest.param(agent, marks=pytest.mark.slow) for agent in ("fql", "idql")]


@pytest.mark.parametrize("agent", ["bc", "sac", *SLOWER])
def test_what_an_agent_has_logged_is_drawn(agent, tmp_path):
    """A real run of each; without success if its environment has none."""
    folder = tmp_path / "run"
    assert train(agent=agent, output=folder, start_steps=6) == 0
    page = write_page(folder).read_text("utf-8")
    assert f"{agent} on {TINY['env']}" in page
    log = read_log(folder / "metrics.csv")
    assert evaluation_chart(log)[:4] == b"\x89PNG"
    drawn = diagnostic_charts(log)
    assert drawn is not None and ("Training metrics" in page)
    assert known(log, "eval/success")[0].tolist() == [0, 12, 24, 36]
