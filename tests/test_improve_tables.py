"""The tables of the loop: their plan, their report, the robot, and a tiny loop of real parts."""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from doc_blocks import ROOT
from toy_reach import ToyReach, demonstration, write_demonstrations

from genpol.commands.improve.options import Improve
from genpol.commands.improve.options import check as check_improve
from genpol.commands.parsing import parse
from scripts import improve_tables as script
from scripts.improve_cell import Cell, Loop, Settings, copy_episodes, rows_of
from scripts.improve_robot import COLUMNS, Robot, tells
from scripts.results_table import Table

HELPERS = ROOT / "tests" / "helpers"


def test_whole_comparisons_come_early_and_nothing_twice():
    plan = list(script.planned())
    assert len(plan) == len(set(plan))
    first = [entry for entry in plan if entry[:2] == ("push-v3", 0)]
    assert plan[: len(first)] == first
    assert [e[2:] for e in first[:5]] == [
        ("policy", 0), ("demos", 0), ("value", 50), ("value", 100), ("value", 200),
    ]  # fmt: skip
    pictures = {arm for task, _, arm, _ in plan if "images" in task}
    assert pictures == set(script.WITH_IMAGES) and {e[2] for e in plan} == set(script.ARMS)


def row(task, seed, arm, episodes, wins, count=50):
    return {
        "task": task, "seed": str(seed), "arm": arm, "episodes": str(episodes),
        "evaluated": str(count), "successes": str(wins), "success": str(wins / count),
        "wall_seconds": "600", "cpu_seconds": "1200",
    }  # fmt: skip


def test_the_report_pools_seeds_judges_the_target_and_names_what_is_missing():
    rows = [
        row("push-v3", 0, "policy", 0, 15), row("push-v3", 1, "policy", 0, 5),
        row("push-v3", 0, "demos", 0, 10), row("push-v3", 1, "demos", 0, 10),
        row("push-v3", 0, "value", 100, 40), row("push-v3", 1, "value", 100, 30),
        row("push-v3", 0, "expo", 100, 29), row("push-v3", 2, "wrong", 100, 50),
    ]  # fmt: skip
    said = script.report(rows)
    lines = {line.split(" | ")[1]: line for line in said.splitlines() if line.startswith("| push")}
    assert lines["policy"] == "| push-v3 | policy | 2 | 20 (13-29) |  |  |  | 10 | 20 |"
    assert lines["value"] == "| push-v3 | value | 2 |  |  | 70 (60-78) |  | 10 | 20 |"
    assert "- push-v3, value: 70%, +50 points over 2 seeds: met." in said
    assert "- push-v3, expo: 58%, +38 points over 1 seeds: not met." in said  # below 60 %
    assert "push-v3, wrong:" not in said.split("No rows")[0]  # demos of the same seed are missing
    assert "- push-v3, policy: 2/0" in said
    assert "- push-v3, value: 0/50, 0/200, 1/50, 1/200, 2/50, 2/100, 2/200" in said
    assert "pick-place-v3, demos: 0/0, 1/0, 2/0" in said
    shape = {line.count("|") for line in said.splitlines() if line.startswith(("|", "| push"))}
    assert shape == {10}


def test_targets_are_not_met_by_a_lead_that_is_too_small():
    rows = [row("push-v3", 0, "demos", 0, 30), row("push-v3", 0, "value", 100, 38)]
    assert "- push-v3, value: 76%, +16 points over 1 seeds: not met." in script.report(rows)


def test_the_robot_tells_what_its_seed_says():
    said = [tells(3, episode, 0.5, 0.1) for episode in range(2000)]
    assert said == [tells(3, episode, 0.5, 0.1) for episode in range(2000)]
    told = [one for one in said if one is not None]
    assert 0.45 < len(told) / 2000 < 0.55 and 0.07 < told.count(False) / len(told) < 0.13
    assert all(tells(3, episode, 1.0, 0.0) is True for episode in range(100))
    assert said != [tells(4, episode, 0.5, 0.1) for episode in range(2000)]


class Server(Robot):
    """The robot with a server in the same process, which fails at times."""

    def __init__(self, faults=()):
        super().__init__("ws://nowhere")
        self.messages, self.faults = [], list(faults)

    def connect(self):
        return self

    def infer(self, message):
        self.messages.append(message)
        if self.faults and (fault := self.faults.pop(0)):
            raise fault
        if "success" in message or "reset" in message:
            return {}
        x, y, g = message["state"]
        step = np.clip(4 * np.array([g - x, -y]), -1, 1)
        return {"actions": np.stack([step] * 3), "steer": {"version": "2-ab"}}


class Toy(ToyReach):
    def reset(self, *, seed):
        state, info = super().reset(seed=seed)
        self.steps = 0
        return {"state": state}, info

    def step(self, action):
        self.steps += 1
        state, reward, _, _, info = super().step(action)
        return {"state": state}, reward, False, self.steps >= 12, info


def test_the_robot_executes_what_it_is_answered_and_says_how_it_ended():
    robot = Server()
    found = robot.play(Toy(), 1, True)
    assert found["success"] == 1 and found["told"] == "1" and found["version"] == "2-ab"
    last = robot.messages[-1]
    assert last["success"] is True and "state" in last  # what it looks like is told, too
    executed = 3 * (found["decisions"] - 1) + len(last["executed"])
    assert executed == found["steps"] and found["decisions"] == len(robot.messages) - 1
    robot.play(Toy(), 1, False)  # a wrong word
    assert robot.messages[-1]["success"] is False and "state" not in robot.messages[-1]
    assert robot.play(Toy(), 1, None)["told"] == "" and robot.messages[-1]["reset"] is True


def test_the_robot_asks_again_and_goes_on_with_its_episode(monkeypatch):
    monkeypatch.setattr("scripts.improve_robot.PAUSE", 0.0)
    plain = Server()
    expected = plain.play(Toy(), 1, True)
    robot = Server([None, ConnectionRefusedError(), RuntimeError("no upstream"), OSError(), None])
    found = robot.play(Toy(), 1, True)
    assert found["lost"] == 3 and found["steps"] == expected["steps"] and found["success"] == 1
    with pytest.raises(SystemExit, match="does not answer: gone"):
        patient = Server([OSError("gone")] * 10)
        patient._patience = -1.0
        patient.ask({"state": np.zeros(3)})


def test_demonstrations_are_copied_as_they_are_needed(tmp_path):
    whole = write_demonstrations(tmp_path / "whole.hdf5")
    wins = sum(bool(demonstration(seed).success) for seed in range(20))
    copy_episodes(whole, tmp_path / "wins.hdf5", only=True)
    from robots.datasets.open import open_dataset

    found = open_dataset(tmp_path / "wins.hdf5")
    assert len(found) == wins and all(found[i].success for i in range(wins)) and 0 < wins < 20
    assert found.env == "ToyReach-v0"


def test_the_words_of_a_loop_are_options_of_improve(tmp_path):
    for task in script.TASKS:
        options = argparse.Namespace(work=tmp_path, settings={}, threads=2)
        cell = script.make_cell(task, 0, options)
        cell.successes = lambda: Path("demos.hdf5")
        for arm, (learn, labelled, wrong) in script.LOOPS.items():
            words = Loop(cell, arm, learn, labelled, wrong).words("ws://127.0.0.1:1")
            config = parse(Improve, words, "genpol improve")
            check_improve(config)
            assert config.learn == learn and config.every == Settings().every
            assert (config.image_keys == ("image",)) is ("images" in task)


def test_a_row_that_a_kill_cut_off_is_no_episode(tmp_path):
    log = tmp_path / "robot.csv"
    with open(log, "w", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS)
        rows.writeheader()
        rows.writerow(dict.fromkeys(COLUMNS, 1))
        file.write("1,2,3")
    assert len(rows_of(log)) == 1 and rows_of(tmp_path / "none") == []


TINY = {
    "demonstrations": 20, "clone_steps": 30, "value_steps": 30, "chunk": 3, "every": 3,
    "evaluated": 3, "candidates": 3, "max_steps": 12,
    "value_options": "--hidden 8 --batch-size 8", "expo_options": "--hidden 8 --batch-size 8",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_tiny_loop_of_real_parts_adds_its_rows_once_and_goes_on(tmp_path, monkeypatch):
    """The toy is the robot, in a process of its own."""
    path = os.pathsep.join(map(str, (ROOT, HELPERS)))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr(script, "MILESTONES", (3, 6))
    monkeypatch.setattr(Cell, "demonstrations", lambda self: demos)
    task = "toy_reach:ToyReach"
    monkeypatch.setattr(script, "TASKS", {task: {}})
    demos = write_demonstrations(tmp_path / "demos.hdf5", env=task)
    arms = ["policy", "demos", "value", "filtered", "expo", "half-wrong"]
    options = argparse.Namespace(
        tasks=[task], arms=arms, seeds=[0], threads=1, work=tmp_path / "work", most=6,
        results=tmp_path / "improve.csv", settings=TINY,
    )  # fmt: skip
    script.fill(options)
    rows = Table(options.results, script.COLUMNS).rows()
    assert [(r["arm"], r["episodes"]) for r in rows] == [
        ("policy", "0"), ("demos", "0"), ("value", "3"), ("value", "6"), ("filtered", "3"),
        ("filtered", "6"), ("expo", "3"), ("expo", "6"), ("half-wrong", "3"), ("half-wrong", "6"),
    ]  # fmt: skip
    loop = tmp_path / "work" / task / "seed0" / "loop-value"
    assert len(rows_of(loop / "robot.csv")) == 6
    assert {p.name for p in loop.glob("after-*")} == {"after-3", "after-6"}
    assert all(len(row["outcomes"]) == 3 and float(row["wall_seconds"]) >= 0 for row in rows)
    before = options.results.read_bytes()
    script.fill(options)
    assert options.results.read_bytes() == before


@pytest.mark.slow
def test_the_robot_is_a_process_of_its_own_that_imports_no_policy(tmp_path):
    """It has the simulator and openpi's client; nothing of genpol or of serving."""
    source = (
        "import sys; import scripts.improve_robot; from robots.envs.make import make_env; "
        "import openpi_client.websocket_client_policy; "
        "print(*[m for m in sys.modules if m.split('.')[0] == 'genpol' or 'serving' in m])"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=ROOT,
        timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == []
