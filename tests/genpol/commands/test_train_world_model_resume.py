"""A run with a world model that is killed and resumed equals one that is not, bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from toy_reach import write_demonstrations
from training_runs import (
    MODELLED,
    TINY,
    assert_same_run,
    differences,
    interrupt_at,
    resume,
    rows,
    state,
    train,
)

pytestmark = pytest.mark.usefixtures("no_page")

KINDS = {
    "plain": {"lipschitz": "adversarial", "rollout_lengths": (1, 3), "rollout_schedule": (6, 18)},
    "offline first": {"world_model": "vagram", "offline_updates": 18, "steps": 12},
    "squared error": {"world_model": "mse", "lipschitz": "spectral"},
}
SLOW = {
    "rlpd": {"agent": "rlpd", "world_model": "vagram", "value_diversity": 1, "num_envs": 3},
    "sac": {"agent": "sac", "start_steps": 6},
    "dsrl": {"agent": "dsrl", "lipschitz": "spectral", "rollout_lengths": (2, 2)},
    "idql": {"agent": "idql", "world_model": "vagram", "offline_updates": 6},
    "black box": {"base": "black_boxes:Aim", "update_after": 11},
}


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("data") / "demos.hdf5")


def check(kind: dict, at: int, data: Path, tmp_path: Path, monkeypatch) -> None:
    """Killed after row `at`, which the checkpoint of step 15 may lack."""
    options = TINY | MODELLED | {"steps": 30} | kind
    if "base" not in options and options.get("agent") != "sac":
        options["data"] = data
    assert train(**options, output=tmp_path / "straight") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, at, None)
        assert train(**options, output=tmp_path / "run") == 130
    assert int(rows(tmp_path / "run")[-1]["step"]) >= at
    assert resume(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", tmp_path / "straight")
    loop = state(tmp_path / "run")["loop"]
    assert len(loop["imagination"]["ring"]["rows"]["reward"]) > 0


@pytest.mark.parametrize("name", KINDS)
def test_killed_and_resumed(name, demos, tmp_path, monkeypatch):
    check(KINDS[name], 24, demos, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("at", [12, 24])
def test_many_kinds_killed_and_resumed(name, at, demos, tmp_path, monkeypatch):
    check(SLOW[name], at, demos, tmp_path, monkeypatch)


def test_stopped_among_the_offline_updates(demos, tmp_path, monkeypatch):
    options = MODELLED | {"data": demos, "offline_updates": 18, "steps": 6}
    assert train(**options, output=tmp_path / "straight") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12, signal.SIGTERM)
        assert train(**options, output=tmp_path / "run") == 143
    loop = state(tmp_path / "run")["loop"]
    assert (loop["learnt"], loop["counts"][0], loop["running"]) == (12, 0, [])
    assert resume(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_evaluation_changes_nothing(demos, tmp_path):
    options = MODELLED | {"data": demos, "steps": 24, "world_model": "mle"}
    assert train(**options, output=tmp_path / "often") == 0
    rarely = {"eval_every": 1000, "eval_episodes": 3, "output": tmp_path / "rarely"}
    assert train(**(options | rarely)) == 0
    often, rare = (state(tmp_path / name) for name in ("often", "rarely"))
    assert differences(often["loop"], rare["loop"]) == []


def test_the_same_options_may_be_given_again(tmp_path, capsys):
    """What is usual for an agent is not asked of a run that was told otherwise."""
    options = {"agent": "sac", "steps": 0, "policy_utd": 2.0}
    run = tmp_path / "run"
    assert train(**(MODELLED | options), output=run) == 0
    assert resume(run, agent="sac", world_model="mle", steps=0) == 0
    assert "has already run 0 steps" in "".join(capsys.readouterr())
    assert resume(run, agent="sac", batch_size=9) == 2
    assert "--batch-size 9 differs from" in capsys.readouterr().err
