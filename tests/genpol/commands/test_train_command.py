"""`genpol train`: the run folder it leaves, its options, and what it refuses."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_reach import LIMIT, NAME, write_demonstrations
from training_runs import TINY, differences, interrupt_at, resume, rows, state, train, words

from genpol.agents.config import FAITHFUL
from genpol.cli import main
from genpol.commands.parsing import parse
from genpol.commands.train.command import run
from genpol.commands.train.options import Train
from genpol.policies.policy import load_policy
from genpol.steering.paired_episodes import run_episodes
from genpol.training.outcomes import read_outcomes
from offline.critics.value import ValueFunction
from offline.errors import InputError
from robots.envs.make import layout_seed, make_env

SAMPLE = {"state": torch.zeros(1, 3)}


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("data") / "demos.hdf5")


@pytest.fixture(scope="module")
def done(demos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("done") / "run"
    assert train(data=demos, output=folder) == 0
    return folder


def test_the_run_folder(done):
    summary = json.loads((done / "summary.json").read_text())
    assert summary["train/env_steps"] == 36 and summary["train/updates"] == 30
    assert 0 <= summary["eval/success_low"] <= summary["eval/success"]
    assert summary["eval/success"] <= summary["eval/success_high"] <= 1
    assert summary["eval/return"] < 0 and 1 <= summary["eval/length"] <= LIMIT
    assert summary["train/episodes"] >= 36 // LIMIT and 0 <= summary["train/success"] <= 1
    assert 0 < summary["time/cpu_seconds"] and 0 < summary["time/wall_seconds"]

    table = rows(done)
    assert [row["step"] for row in table] == ["0", "6", "12", "18", "24", "30", "36"]
    assert [row["step"] for row in table if row["eval/success"]] == ["0", "12", "24", "36"]
    assert [row["step"] for row in table if row["diagnose/misrank"]] == ["12", "24", "36"]
    last = table[-1]
    assert float(last["eval/return"]) == summary["eval/return"]
    assert all(last[name] for name in ("train/return", "train/success", "critic/td_loss"))

    policy, value = load_policy(done), ValueFunction.load(done)
    assert policy.env == value.env == NAME
    act = policy.sample(SAMPLE, 3, torch.Generator().manual_seed(0))
    assert act.shape == (1, 3, 2, 2) and value(SAMPLE, act).shape == (2, 1, 3)


def test_evaluation_changes_nothing(done, demos, tmp_path):
    """Often or hardly ever, the same weights, replay and generators come out."""
    options = {"eval_every": 1000, "eval_episodes": 5}
    assert train(data=demos, **options, output=tmp_path / "run") == 0
    often, rarely = state(done), state(tmp_path / "run")
    assert differences(often["loop"], rarely["loop"]) == []
    assert differences(often["random"], rarely["random"]) == []


def test_evaluation_puts_back_the_streams_that_the_agent_draws_from(demos, tmp_path, no_page):
    """IDQL evaluates with a few heads, drawn from a stream of its own."""
    runs = []
    for every in (12, 1000):
        options = {"agent": "idql", "data": demos, "eval_every": every}
        assert train(**options, output=tmp_path / str(every)) == 0
        runs.append(state(tmp_path / str(every))["loop"])
    assert differences(*runs) == []


def test_evaluation_is_in_eval_mode(tmp_path, no_page, monkeypatch):
    """RLPD acts with the critic's encoder, which is in training mode while it learns."""
    modes = []

    def recorded(policy, *args, **kwargs):
        modes.append([module.training for module in policy.modules()])
        return run_episodes(policy, *args, **kwargs)

    monkeypatch.setattr("genpol.training.evaluation.run_episodes", recorded)
    asked = {"agent": "rlpd", "start_steps": 6, "offline_fraction": 0, "output": tmp_path / "run"}
    assert train(**asked) == 0
    assert len(modes) > 1 and not any(any(each) for each in modes)


def test_seeds_differ(done, demos, tmp_path):
    assert train(data=demos, seed=1, steps=12, output=tmp_path / "run") == 0
    weights = "policy/policy.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() != (done / weights).read_bytes()


def test_pretraining_is_logged_by_its_own_steps(demos, tmp_path):
    options = {"pretrain_steps": 200, "steps": 0, "output": tmp_path / "run"}
    assert train(data=demos, **options) == 0
    first, second = rows(tmp_path / "run", table="pretrain.csv")
    assert (first["step"], second["step"]) == ("100", "200")
    assert float(second["pretrain/base/loss"]) < float(first["pretrain/base/loss"])
    (row,) = rows(tmp_path / "run")
    assert row["pretrain/base/loss"] == second["pretrain/base/loss"]


def test_from_a_clone_and_a_critic(done, tmp_path):
    """Both of an earlier run; no data, so nothing is pretrained."""
    run = tmp_path / "run"
    assert train(base=done, value=done, output=run, steps=0) == 0
    ours, theirs = load_policy(run), load_policy(done)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    for mine, other in zip(
        ValueFunction.load(run).parameters(), ValueFunction.load(done).parameters(), strict=True
    ):
        assert torch.equal(mine, other)


def test_what_is_evaluated_is_the_policy_on_the_evaluation_layouts(done, tmp_path):
    assert train(base=done, agent="bc", output=tmp_path / "run", steps=0) == 0
    seeds = [layout_seed("evaluate", 0, i) for i in range(TINY["eval_episodes"])]
    expected = run_episodes(load_policy(done), lambda: make_env(NAME), seeds, generator_seed=0)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["eval/return"] == pytest.approx(expected.returns.mean(), rel=1e-5)
    assert summary["eval/success"] == expected.success.mean()


def test_from_scratch(tmp_path):
    """Uniform actions first; updates begin once they are over."""
    assert train(start_steps=12, agent="sac", steps=12, output=tmp_path / "random") == 0
    rows = state(tmp_path / "random")["loop"]["replay"]["rows"]
    actions = rows["steps/action"][:12]
    assert np.abs(actions).max() <= 1 and actions.std() > 0.4  # of a uniform one: .58
    assert train(start_steps=12, output=tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["train/updates"] == 24


def test_a_black_box_with_a_memory(tmp_path, monkeypatch):
    """It stays in its episode while it is evaluated and while targets are computed; a run that
    is stopped in the middle of an episode goes on with what it remembered."""
    options = {"base": "black_boxes:Aim", "eval_every": 7}
    assert train(**options, output=tmp_path / "straight") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 18, signal.SIGTERM)
        assert train(**options, output=tmp_path / "run") == 143
    assert resume(tmp_path / "run") == 0
    assert differences(*(state(tmp_path / name)["loop"] for name in ("straight", "run"))) == []
    assert not (tmp_path / "run" / "policy").exists()  # there is none of ours to deploy
    loop = state(tmp_path / "run")["loop"]
    # Its direction never changes within an episode, whatever came between two decisions.
    (running,) = loop["running"]
    assert len(running["actions"]) >= 2
    assert (running["actions"].sign() == running["actions"][0].sign()).all()


def test_around_a_policy_that_is_served(done, tmp_path):
    """A batch of states asks over a few connections, not over one each."""
    pytest.importorskip("websockets")
    from robots.serving.observations import Observations
    from robots.serving.serve import PolicyServer
    from robots.serving.sessions import FEATURES, PolicySession

    base = load_policy(done)
    shapes = {"state": [3]}

    def session():
        return PolicySession(base, Observations(shapes), torch.Generator().manual_seed(0))

    announced = {"features": list(FEATURES), "obs_shapes": shapes, "spec": base.spec.to_dict()}
    metadata = {"genpol": announced}
    with PolicyServer(session, port=0, max_connections=24, metadata=metadata) as server:
        options = {"base": server.address, "batch_size": 30, "steps": 12, "eval_episodes": 2}
        assert train(**options, output=tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["train/updates"] > 0


# ------------------------------------------------------------------------------------- options


def test_a_presets_options_give_way_to_those_given():
    def parsed(text):
        return parse(Train, text.split(), "genpol train")

    faithful = parsed("--preset faithful --env x")
    assert all(getattr(faithful, name) == value for name, value in FAITHFUL.items())
    default = Train()
    assert parsed("--env x").utd == default.utd != FAITHFUL["utd"]
    # also where what is given is the default of the default preset
    given = parsed(f"--utd {default.utd} --preset=faithful --value-ensemble 3")
    assert (given.utd, given.value_ensemble) == (default.utd, 3)
    assert given.policy == FAITHFUL["policy"] != default.policy


def test_every_episode_of_every_evaluation_is_kept(tmp_path):
    folder = tmp_path / "run"
    arguments = words(**TINY | {"steps": 4, "eval_every": 4, "eval_episodes": 3, "output": folder})
    assert main(["train", *arguments]) == 0
    found = read_outcomes(folder / "evaluations")
    assert list(found) == [0, 4]  # by step
    assert len(found[0].seeds) == 3 and (found[0].seeds == found[4].seeds).all()


def test_a_preset_that_nothing_applied_is_refused():
    with pytest.raises(InputError, match="changes nothing in Python"):
        run(Train(env=NAME, preset="faithful"))


def test_the_preset_reaches_the_run(tmp_path):
    small = {k: v for k, v in TINY.items() if k not in ("utd", "action_chunk")}
    arguments = words(**small | {"preset": "faithful", "steps": 0, "output": tmp_path / "run"})
    assert main(["train", *arguments]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["utd"] == FAITHFUL["utd"] and config["action_chunk"] == FAITHFUL["action_chunk"]
    assert config["value_ensemble"] == TINY["value_ensemble"] and config["hidden"] == list(
        TINY["hidden"]
    )
