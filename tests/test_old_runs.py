"""Run folders that an earlier version left behind: they act, steer, serve and go on as they did.

tests/old_runs/README.md says how the folders and the expected numbers were made.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import toy_reach  # noqa: F401  (registers the environment that the runs were made in)

from scripts.make_old_runs import ACTING, OUTPUT, RESUMED, RUNS, STEERED_BY, resumed, served, steered
from scripts.same_numbers import differences

# Measured, see tests/old_runs/README.md.
RELATIVE, ABSOLUTE = 1e-3, 1e-5

EXPECTED = json.loads((OUTPUT / "numbers.json").read_text("utf-8"))
GOING_ON = [name for name, (command, _) in RUNS.items() if command in RESUMED]


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A copy of the folders, which is the working directory: runs name each other and their data
    from there."""
    folder = tmp_path / "runs"
    shutil.copytree(OUTPUT, folder)
    monkeypatch.chdir(folder)
    return folder


def check(found: dict, kind: str, name: str) -> None:
    expected = EXPECTED[kind][name]
    assert expected
    assert differences(expected, found, relative=RELATIVE, absolute=ABSOLUTE) == []


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("name", GOING_ON)
def test_it_goes_on_as_it_would_have(name, monkeypatch):
    monkeypatch.setattr("genpol.training.report.write_page", lambda folder: folder)
    check(resumed(name), "resumed", name)


@pytest.mark.parametrize("name", ACTING)
def test_it_is_steered_by_an_old_critic(name, runs, monkeypatch):
    monkeypatch.setattr("genpol.steering.report.write_report", lambda found, folder: folder)
    check(steered(name, runs / "steered"), "steered", name)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("name", ACTING)
def test_it_is_served(name):
    pytest.importorskip("websockets")
    pytest.importorskip("msgpack")
    pytest.importorskip("openpi_client")
    check(served(name), "served", name)
