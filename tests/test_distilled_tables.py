"""The table of distilled steering: what its rows become in the report, and a run of tiny size."""

from __future__ import annotations

from dataclasses import fields

import pytest

from scripts import distilled_tables as script
from scripts import steer_cell
from scripts.results_table import Table


def row(arm, outcomes, *, task="push-v3", policy="flow", seed=0, ms=2.0):
    return {
        "task": task,
        "seed": str(seed),
        "policy": policy,
        "arm": arm,
        "episodes": str(len(outcomes)),
        "successes": str(outcomes.count("1")),
        "outcomes": outcomes,
        "decision_ms": str(ms),
    }


def test_rows_become_success_with_intervals_times_and_paired_differences():
    rows = [
        row("base", "0001" * 10), row("steered", "1101" * 10, ms=9.0),
        row("prdp", "1101" * 10), row("nft", "0001" * 10),
        row("steered", "11" * 10, seed=1, ms=11.0), row("prdp", "11" * 10, seed=1),
    ]  # fmt: skip
    report = script.report(rows)
    line = next(x for x in report.splitlines() if x.startswith("| push-v3 | flow | 2 |"))
    assert "25 (14-40), 2.0 ms" in line and "83 (72-91), 10.0 ms" in line
    assert "- prdp, flow: +0.0 (+0.0 to +0.0) over 60 episodes: within the target." in report
    assert "- nft, flow: -50.0 " in report and "40 episodes: below the target." in report
    assert "- prdp, flow: +50.0 " in report  # against one sample, where both have seed 0
    assert "push-v3, flow, seed 0: prdp-forward, filtered." in report
    assert "sweep-v3, diffusion, seed 2: all arms." in report


def test_a_whole_table_says_nothing_of_missing_rows():
    rows = [
        row(arm, "01" * 5, task=task, policy=policy, seed=seed)
        for task in script.TASKS
        for policy in script.POLICIES
        for seed in script.SEEDS
        for arm in script.ARMS
    ]
    assert script.missing(rows) == [] and "Not run yet" not in script.report(rows)
    assert script.missing([]) and "Not run yet (18)" in script.report([])


def test_every_setting_is_one_that_train_knows():
    from genpol.agents.tuning_config import TUNERS
    from genpol.commands.train.options import Train

    known = {f.name for f in fields(Train)}
    for objective, options in script.DISTILL.items():
        assert objective in TUNERS and set(options) <= known


@pytest.mark.slow
def test_a_cell_of_tiny_size(tmp_path, monkeypatch):
    pytest.importorskip("metaworld")
    tiny = {"episodes": 6, "clone_steps": 2, "value_steps": 2}
    monkeypatch.setattr(steer_cell, "SETTINGS", steer_cell.SETTINGS | tiny)
    monkeypatch.setattr(script, "SETTINGS", steer_cell.SETTINGS)
    results = tmp_path / "rows.csv"
    words = [
        "--tasks", "push-v3", "--seeds", "1000", "--policies", "flow", "--episodes", "1",
        "--parallel", "1", "--updates", "2", "--timed", "2", "--work", str(tmp_path / "work"),
        "--results", str(results), "--arms", "steered", "prdp", "nft",
    ]  # fmt: skip
    for _ in range(2):  # the second time nothing is left to do
        monkeypatch.setattr("sys.argv", ["distilled_tables", *words])
        script.main()
    rows = Table(results, script.COLUMNS).rows()
    assert [r["arm"] for r in rows] == ["steered", "prdp", "nft"]
    assert all(float(r["decision_ms"]) > 0 and r["value"] for r in rows)
    assert {r["kl_nats"] for r in rows} == {"nan"}  # two updates make no row
    assert "push-v3" in script.report([{**r, "seed": "0"} for r in rows])
