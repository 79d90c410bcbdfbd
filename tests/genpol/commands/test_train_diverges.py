"""Training that diverges says which network and when, keeps the last good state, and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_reach import write_demonstrations
from training_runs import BRIEF, MODELLED, resume, rows, state, train

from genpol.agents.edit import EditLearner
from genpol.agents.imitation import Imitation
from genpol.runs.state_tree import flatten
from offline.critics.td import TDCritic
from offline.learning.sac import ActorLearner
from offline.learning.temperature import Temperature
from offline.models.model_training import ModelTraining

SHORT = BRIEF | {"steps": 20, "checkpoint_every": 10, "eval_every": 10, "log_every": 20}


def last_line(err: str) -> str:
    line = err.splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in err and len(line) < 600
    return line


def spoil(monkeypatch, kind: type, method: str, parameters, after: int) -> None:
    """From call `after` on the weights are NaN after the update, while its metrics are finite."""
    right, calls = getattr(kind, method), 0

    def update(self, *args, **options):
        nonlocal calls
        calls += 1
        metrics = right(self, *args, **options)
        if calls == after:
            with torch.no_grad():
                next(iter(parameters(self))).fill_(float("nan"))
        return metrics

    monkeypatch.setattr(kind, method, update)


def all_finite(folder: Path) -> bool:
    files = [*folder.glob("policy/*.safetensors"), *folder.glob("value/*.safetensors")]
    files += folder.glob("edit/*.safetensors")
    assert files
    tensors, _ = flatten(state(folder)["loop"]["agent"])
    every = [t for file in files for t in load_file(file).values()] + list(tensors.values())
    return all(bool(torch.isfinite(t).all()) for t in every if t.is_floating_point())


NETWORKS = {
    "critic": ("expo", TDCritic, "update", lambda self: self.params, 9),
    "target critic": ("rlpd", TDCritic, "update", lambda self: self.target.parameters(), 9),
    "base": ("expo", Imitation, "update", lambda self: self.policy.parameters(), 9),
    "edit": ("expo", EditLearner, "update", lambda self: self.policy.parameters(), 9),
    "actor": ("sac", ActorLearner, "update", lambda self: self.params, 9),
    "temperature": ("rlpd", Temperature, "update", lambda self: [self.log], 9),
    "dynamics": ("sac", ModelTraining, "fit", lambda self: self.model.parameters(), 3),
}


FAST = ("critic", "base", "dynamics")


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS]
)
def test_whichever_network_it_is_the_last_good_state_stays(name, monkeypatch, tmp_path, capsys):
    agent, kind, method, parameters, after = NETWORKS[name]
    spoil(monkeypatch, kind, method, parameters, after)
    folder = tmp_path / "run"
    more = MODELLED | {"imagined_fraction": 0.5} if name == "dynamics" else {}
    assert train(agent=agent, output=folder, **SHORT | more) == 2
    line = last_line(capsys.readouterr().err)
    assert "diverged" in line and "checkpoint of step 10 is kept; continue with --resume" in line
    assert {"target critic": "critic", "temperature": "actor", "dynamics": "world model"}.get(
        name, name
    ) in line.partition("optimisers of ")[2].partition(".")[0].split(", ")
    assert all_finite(folder)
    assert not (folder / "summary.json").exists()


def test_a_learning_rate_that_overflows_and_going_on_with_a_smaller_one(tmp_path, capsys):
    folder = tmp_path / "run"
    good = {"agent": "expo", "output": folder} | SHORT
    assert train(**good, lr=1e-3) == 0
    assert resume(folder, steps=40, lr=1e20) == 2
    line = last_line(capsys.readouterr().err)
    assert "training diverged" in line and "Lower --lr" in line and "step 20 is kept" in line
    assert all_finite(folder)
    assert json.loads((folder / "config.json").read_text())["lr"] == 1e20
    assert resume(folder, lr=1e-5) == 0
    groups = state(folder)["loop"]["agent"]["critic"]["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == [1e-5]
    assert rows(folder)[-1]["step"] == "40" and all_finite(folder)


def test_huge_rewards(tmp_path, capsys):
    folder = tmp_path / "run"
    assert train(agent="rlpd", output=folder, reward_scale=1e30, **SHORT) == 2
    line = last_line(capsys.readouterr().err)
    assert "training diverged by step" in line and "critic" in line
    assert all_finite(folder)


def test_pretraining_that_diverges_writes_no_weights(tmp_path, capsys):
    folder = tmp_path / "run"
    data = write_demonstrations(tmp_path / "demos.hdf5")
    options = SHORT | {"pretrain_steps": 3, "base_lr": 1e28}
    assert train(agent="expo", output=folder, data=data, **options) == 2
    assert "diverged" in last_line(capsys.readouterr().err)
    assert not list(folder.rglob("*.safetensors"))
