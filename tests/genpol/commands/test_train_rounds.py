"""`genpol train` by reward of episodes: what a run leaves, resuming it, and what it refuses."""

from __future__ import annotations

import signal

import pytest
import torch
from toy_rounds import ToyAim, policy, train
from training_runs import assert_same_run, differences, resume, rows, state, summary

from genpol.policies.policy import load_policy
from genpol.rounds import play

ARMS = {
    "prdp": {},
    "ddpo": {"layouts": 3},
    "grpo": {"kl_weight": 0.1},
    "rtb": {},
    "prdp-forward": {},
    "nft": {"kl_weight": 0.1},
    "awm": {},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of a flow and of a diffusion policy."""
    folder = tmp_path_factory.mktemp("bases")
    return {kind: policy(kind).save(folder / kind) for kind in ("flow", "diffusion", "gaussian")}


@pytest.fixture(scope="module")
def whole(bases, tmp_path_factory):
    """A run of prdp that was not stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(agent="prdp", base=bases["flow"], output=folder) == 0
    return folder


def refused(capsys, bases, **options) -> str:
    """The one line that a run ends with."""
    options = {"agent": "prdp", "base": bases["flow"]} | options
    assert train(**{k: v for k, v in options.items() if v is not None}) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_run_leaves_a_policy_rows_of_rounds_and_a_page(whole, bases):
    found = rows(whole)
    rounds = [row for row in found if row["round/decisions"]]
    assert len(rounds) == state(whole)["loop"]["rounds"] >= 3
    assert [float(row["train/episodes"]) for row in rounds] == [
        8.0 * (i + 1) for i in range(len(rounds))
    ]
    assert [float(row["train/updates"]) for row in rounds] == [
        2.0 * (i + 1) for i in range(len(rounds))
    ]
    for before, row in zip([{"step": "0"}, *rounds], rounds, strict=False):
        taken = int(row["step"]) - int(before["step"])
        assert taken == float(row["round/decisions"]) == 8 * float(row["train/length"])
        assert abs(float(row["check/ratio_error"])) < 1e-5
    assert float(rounds[0]["kl/nats"]) == 0 < float(rounds[-1]["kl/nats"])
    # A round that reaches --steps is the last, and evaluations are due by environment steps.
    steps = [int(row["step"]) for row in rounds]
    assert steps[-1] >= 40 > steps[-2] and summary(whole)["train/env_steps"] == steps[-1]
    evaluated = [int(row["step"]) for row in found if row["eval/return"]]
    assert evaluated == [0, next(s for s in steps if s >= 30), steps[-1]]
    tuned, base = load_policy(whole), load_policy(bases["flow"])
    assert tuned.meta["tuned"]["objective"] == "prdp"
    body = [
        name
        for name, weight in tuned.named_parameters()
        if not torch.equal(weight, dict(base.named_parameters())[name])
    ]
    assert body and not (whole / "value").exists()
    page = (whole / "index.html").read_text()
    assert "Training metrics" in page and "prdp on ToyAim-v0" in page and "--groups 2" in page


# Of the first two rounds of `whole`, as they were when this was written.
GOLDEN = (
    {"step": 16, "reward/mean": -1.91453, "reward/spread": 0.509316, "prdp/loss": 1.454982,
     "policy/gradient_norm": 14.16634, "kl/nats": 0.0, "kl/forward": 0.0, "train/success": 0.25},
    {"step": 30, "reward/mean": -0.898648, "reward/spread": 0.437464, "prdp/loss": 1.398554,
     "policy/gradient_norm": 15.57652, "kl/nats": 0.01578, "kl/forward": 0.018006,
     "train/success": 0.5},
)  # fmt: skip


def test_two_rounds_give_the_numbers_that_they_gave(whole):
    found = [row for row in rows(whole) if row["round/decisions"]]
    for row, expected in zip(found, GOLDEN, strict=False):
        said = {name: float(row[name]) for name in expected}
        assert said == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("agent", ARMS)
@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_every_objective_trains_and_goes_on_bit_for_bit(agent, kind, bases, tmp_path):
    options = {"agent": agent, "base": bases[kind], **ARMS[agent]}
    assert train(**options, output=tmp_path / "whole") == 0
    first = int(next(row for row in rows(tmp_path / "whole") if row["round/decisions"])["step"])
    assert train(**options, steps=16, output=tmp_path / "parts") == 0
    assert state(tmp_path / "parts")["loop"]["counts"][0] >= first
    assert resume(tmp_path / "parts", steps=40) == 0
    check_same(tmp_path / "whole", tmp_path / "parts")


def check_same(one, two):
    """The same end; the run of two parts was evaluated once more between them."""
    assert differences(*(state(folder)["loop"] for folder in (one, two))) == []
    said = [[row for row in rows(folder) if row["round/decisions"]] for folder in (one, two)]
    for a, b in zip(*said, strict=True):
        assert {k: v for k, v in a.items() if "eval/" not in k} == {
            k: v for k, v in b.items() if "eval/" not in k
        }


@pytest.mark.parametrize(
    "step", [pytest.param(3, marks=pytest.mark.slow), 9, pytest.param(16, marks=pytest.mark.slow)]
)
def test_a_round_that_a_signal_stops_is_played_again(step, whole, bases, tmp_path, monkeypatch):
    """In the midst of the first round, of the second, and of a later one."""
    count, made = 0, play._Lanes.step

    def counted(self):
        nonlocal count
        count += 1
        if count == step:
            signal.raise_signal(signal.SIGTERM)
        made(self)

    monkeypatch.setattr(play._Lanes, "step", counted)
    folder = tmp_path / "run"
    assert train(agent="prdp", base=bases["flow"], output=folder) == 128 + signal.SIGTERM
    assert count == step
    monkeypatch.setattr(play._Lanes, "step", made)
    assert resume(folder) == 0
    assert_same_run(whole, folder)


@pytest.mark.slow
def test_environments_in_processes_give_the_same_numbers(whole, bases, tmp_path):
    assert train(agent="prdp", base=bases["flow"], env_workers=2, output=tmp_path / "run") == 0
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
def test_nothing_grows_over_rounds(bases, tmp_path):
    """Of a run of two rounds and of one of ten, ddpo's memory of layouts included."""
    sizes = []
    for steps in (16, 130):
        folder = tmp_path / str(steps)
        options = {"eval_every": 1000, "checkpoint_every": 1000}
        assert train(agent="ddpo", base=bases["flow"], steps=steps, output=folder, **options) == 0
        found = state(folder)["loop"]
        assert found["agent"]["tuning"]["objective"] == {"seen": {}}
        held = max(folder.glob("checkpoints/step-*"))
        sizes.append(sum(p.stat().st_size for p in held.glob("*.safetensors")))
    assert found["rounds"] > 8 and sizes[0] == sizes[1]


@pytest.mark.slow
def test_layouts_come_back_in_turn(bases, tmp_path, monkeypatch):
    seeds, reset = [], ToyAim.reset

    def seen(self, *, seed=None, options=None):
        seeds.append(seed)
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(ToyAim, "reset", seen)
    few = {"num_envs": 1, "eval_episodes": 1}
    options = {"agent": "ddpo", "base": bases["flow"], **few}
    assert train(**options, layouts=3, output=tmp_path / "run") == 0
    remembered = state(tmp_path / "run")["loop"]["agent"]["tuning"]["objective"]["seen"]
    assert remembered.keys() == {"layout 0", "layout 1", "layout 2"}
    trained = [s for s in dict.fromkeys(seeds) if s is not None and seeds.count(s) > 3]
    assert len(trained) == 3


@pytest.mark.slow
def test_a_warning_after_rounds_without_a_difference(bases, tmp_path, capsys):
    """No shot of a policy that hits nothing succeeds."""
    missing = policy("flow")
    with torch.no_grad():
        missing.head.trunk.out.weight.zero_()
        for weight in missing.head.conditioner.parameters():
            weight.zero_()
        missing.head.conditioner.out.bias[-1] = 40.0  # far to the right of every target
    folder = missing.save(tmp_path / "missing")
    options = {"reward": "zero-one", "steps": 170, "base_lr": 1e-6, "eval_every": 1000}
    assert train(agent="prdp", base=folder, output=tmp_path / "run", **options) == 0
    said = capsys.readouterr()
    lines = [
        x for x in (said.out + said.err).replace("\r", "\n").splitlines() if x.startswith("warning")
    ]
    assert len(lines) == 2 and "last 5 rounds" in lines[0] and "last 10 rounds" in lines[1]
    found = [row for row in rows(tmp_path / "run") if row["round/decisions"]]
    assert {row["round/tied"] for row in found} == {"1.0"}
    assert {row["policy/gradient_norm"] for row in found} == {"0.0"}
    tuned = load_policy(tmp_path / "run")  # what gave no difference taught nothing
    for name, weight in missing.named_parameters():
        torch.testing.assert_close(dict(tuned.named_parameters())[name], weight, atol=1e-6, rtol=0)


def test_what_is_refused(bases, capsys, tmp_path):
    def said(**options):
        return refused(capsys, bases, output=tmp_path / "none", **options)

    assert "needs one: pass --base" in said(base=None)
    assert "gaussian policy has no denoising steps" in said(base=bases["gaussian"])
    assert "--steps 15 may be fewer than one round" in said(steps=15)
    assert "Pass --steps 16" in said(steps=15)
    assert "--layouts 1 is fewer than the --groups 2" in said(layouts=1)
    assert "--num-envs 9 is more than the 2 x 4 episodes" in said(num_envs=9)
    assert "--action-chunk 1" in said(action_chunk=2)
    assert "--sampler ode" in said(sampler="ode")
    assert "--group-size" in said(group_size=1)
    assert "in which --data has no part" in said(data="demos.hdf5")
    assert "--offline-updates 5 has no part" in said(offline_updates=5)
    assert "--start-steps 5 has no part" in said(start_steps=5)
    assert "--kl-cap 9.0 has no part" in said(kl_cap=9)
    assert "learn from episodes in --env" in said(steps=0, offline_updates=5)
    assert "--world-model is of other agents" in said(world_model="mle", imagined_fraction=0.5)
    assert "of agents that fine-tune the base policy by reward" in said(agent="bc")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_policy_that_samples_by_ddim_has_no_densities(bases, capsys, tmp_path):
    quiet = policy("diffusion", sampler="ddim").save(tmp_path / "ddim")
    line = refused(capsys, bases, base=quiet, output=tmp_path / "run")
    assert "samples by ddim, whose steps draw no noise" in line
    assert train(agent="prdp-forward", base=quiet, steps=16, output=tmp_path / "run") == 0
