"""Run folders that an earlier version left behind: they act, steer, serve and go on as they did.

tests/old_runs/README.md says how the folders and the expected numbers were made.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import toy_reach  # noqa: F401  (registers the environment that the runs were made in)

from genpol.cli import main
from offline.errors import InputError
from scripts.make_old_runs import ACTING, OUTPUT, RESUMED, RUNS, resumed, served, steered
from scripts.same_numbers import differences

# Processors differ in the last bits. With the oldest instructions that libraries can be told to
# use, the largest difference of all these numbers was 2.2e-5 of the number; whatever is wrong in
# how a run goes on is far larger.
RELATIVE, ABSOLUTE = 1e-4, 1e-6

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
    assert differences(expected, found, relative=RELATIVE, absolute=ABSOLUTE, more=True) == []


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


DOCUMENTS = {
    "clone-flow/policy/policy.json": "genpol policy 1",
    "value-calql/value/config.json": "genpol value function 1",
    "train-expo/edit/edit.json": "genpol edit policy 1",
    "train-rlpd/policy/policy.json": "genpol policy 1",
    "train-dsrl/policy/policy.json": "genpol policy 1",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_later_format_of_a_part_is_refused_by_its_name(name, runs):
    from genpol.agents.deploy import load_trained
    from offline.critics.value import ValueFunction

    path, load = runs / name, load_trained
    document = json.loads(path.read_text("utf-8"))
    assert document["format"] == DOCUMENTS[name]
    document["format"] = later = DOCUMENTS[name].replace(" 1", " 2")
    path.write_text(json.dumps(document), "utf-8")
    if name.startswith("value"):
        load = ValueFunction.load
    with pytest.raises(InputError) as caught:
        load(runs / name.split("/")[0])
    text = str(caught.value)
    assert later in text and DOCUMENTS[name] in text and "\n" not in text


@pytest.mark.parametrize("name", ["finetune", "train-expo"])
def test_a_later_format_of_a_run_is_refused_by_its_name(name, runs, capsys):
    path = runs / name / "config.json"
    document = json.loads(path.read_text("utf-8"))
    assert "format" not in document  # these runs are older than the entry
    path.write_text(json.dumps(document | {"format": "genpol run 3"}), "utf-8")
    assert main([RUNS[name][0], "--resume", name]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "genpol run 3" in error[0] and "genpol run 2" in error[0]
