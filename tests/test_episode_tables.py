"""The table of fine-tuning by episodes: its plan, its report, and one tiny run of each kind."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from doc_blocks import ROOT

from scripts import episode_tables as script
from scripts import expo_table
from scripts.results_table import Table

ASSETS = ROOT / "genpol" / "assets" / "training"


def test_success_is_read_off_the_line_between_two_evaluations():
    assert script.success_at([(0, 0.2), (40, 0.6), (60, 0.8)], 50) == pytest.approx(0.7)
    assert script.success_at([(60, 0.8), (0, 0.2)], 90) == pytest.approx(0.8)


def rows_of(arm: str, seed: int, *curve: tuple[int, float]) -> list[dict[str, str]]:
    return [
        {
            "task": "push-v3", "arm": arm, "seed": str(seed), "step": str(step),
            "success": str(success), "cpu_seconds": "120",
        }
        for step, success in curve
    ]  # fmt: skip


def test_the_report_compares_on_the_same_seeds_and_names_what_is_missing():
    rows = [
        *rows_of("grpo", 0, (0, 0.4), (20_000, 0.6), (48_000, 0.7), (52_000, 0.9)),
        *rows_of("grpo", 1, (0, 0.4), (60_000, 0.4)),
        *rows_of("expo", 0, (0, 0.3), (50_000, 0.9)),
        *rows_of("bc", 0, (0, 0.42), (50_000, 0.5)),
    ]
    said = script.report(rows)
    lines = {line.split(" | ")[1]: line for line in said.splitlines() if line.startswith("| push")}
    assert "| 2 | 40 | 45 | " in lines["grpo"]  # at 10,000 steps .5 and .4
    assert "| 60 (40-80) | -10 (-10 to -10) | 2 |" in lines["grpo"]
    assert "| 1 | 42 |" in lines["base"] and " 90 (90-90) |  | 2 |" in lines["expo"]
    assert "- prdp on push-v3 (seeds 0, 1, 2)" in said and "- grpo on push-v3 (seed 2)" in said
    assert "- expo on push-v3 (seeds 1, 2)" in said and "- bc on pick-place-v3 (seeds" in said
    header, rule = (line for line in said.splitlines() if line.startswith(("| task", "|---")))
    assert {line.count("|") for line in (header, rule, *lines.values())} == {10}


def test_every_arm_is_one_that_train_knows_and_accepts():
    from genpol.commands.train.options import Train, check

    known = {f.name for f in fields(Train)}
    cell = expo_table.Cell("push-v3", 0, Path("nowhere"))
    cell.clone, cell.demos = (lambda: Path("clone")), (lambda: Path("demos.hdf5"))
    for arm in script.ARMS:
        given = script.options_of(cell, arm)
        assert set(given) <= known and given["steps"] == script.STEPS
        assert given["base"] == "clone" and given["agent"] == arm
        check(Train.recommended(**given))
        assert ("data" in given) is (arm not in script.BY_ROUNDS)
    episodes = script.ROUNDS["groups"] * script.ROUNDS["group_size"]
    assert script.STEPS > 200 * episodes


@pytest.mark.slow
def test_runs_add_their_curves_once(tmp_path, monkeypatch):
    monkeypatch.setattr(expo_table.Cell, "clone", lambda self: ASSETS)
    monkeypatch.setattr(expo_table.Cell, "demos", lambda self: ASSETS / "demos.hdf5")
    tiny = {"steps": 32, "eval_every": 16, "eval_episodes": 2, "max_steps": 8, "device": "cpu"}
    monkeypatch.setattr(script, "EVALUATION", script.EVALUATION | tiny)
    monkeypatch.setattr(
        script, "ROUNDS", script.ROUNDS | {"groups": 2, "group_size": 2, "num_envs": 2}
    )
    options = argparse.Namespace(
        tasks=["pick-place-v3"], arms=["grpo", "bc"], seeds=[0], threads=1, work=tmp_path / "work",
        results=tmp_path / "episodes.csv",
    )  # fmt: skip
    script.fill(options)
    rows = Table(options.results, script.COLUMNS).rows()
    assert [(row["arm"], int(row["step"])) for row in rows] == [
        ("grpo", 0), ("grpo", 32), ("bc", 0), ("bc", 16), ("bc", 32),
    ]  # fmt: skip
    assert rows[0]["success"] == rows[2]["success"]  # the clone, on the same layouts
    shutil.rmtree(tmp_path / "work")
    script.fill(options)
    assert Table(options.results, script.COLUMNS).rows() == rows
    assert not (tmp_path / "work" / "pick-place-v3" / "seed0" / "episodes-grpo").exists()
