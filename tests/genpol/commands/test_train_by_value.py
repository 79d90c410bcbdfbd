"""`genpol train --agent prdp` and its peers: a policy learns from a critic, without a simulator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_reach import NAME, SPEC, write_demonstrations
from training_runs import TINY, assert_same_run, interrupt_at, resume, rows, words

from genpol.cli import main
from genpol.policies.architecture import Architecture
from genpol.policies.policy import ChunkPolicy, load_policy
from offline.critics.value import ValueFunction
from robots.datasets.open import open_dataset

SHAPES, CHUNKS = {"state": (3,)}, SPEC.with_chunk(2)
OFFLINE: dict[str, Any] = {
    "agent": "prdp",
    "steps": 0,
    "offline_updates": 4,
    "batch_size": 4,
    "group_size": 3,
    "inner_steps": 2,
    "log_every": 1,
    "checkpoint_every": 3,
    "eval_every": 100,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """Demonstrations, policies of every kind and a critic, none of which has learnt anything."""
    folder = tmp_path_factory.mktemp("made")
    found = {"data": write_demonstrations(folder / "demos.hdf5")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for kind, sampler in (
            ("flow", "ddpm"), ("diffusion", "ddpm"), ("diffusion", "ddim"), ("gaussian", "ddpm"),
        ):  # fmt: skip
            sizes = Architecture(features=16, width=8, denoising_steps=4, sampler=sampler)
            name = sampler if sampler == "ddim" else kind
            policy = ChunkPolicy(kind, CHUNKS, SHAPES, env=NAME, architecture=sizes)
            policy.save(folder / name)
            found[name] = folder / name
        value = ValueFunction(CHUNKS, SHAPES, env=NAME, hidden=(8, 8), ensemble=2, heads="stacked")
        found["value"] = value.save(folder / "value")
    return found


def by_value(made, base="flow", **options) -> int:
    named = {"base": made[base], "value": made["value"], "data": made["data"]}
    return train(**OFFLINE | named | options)


def train(**options) -> int:
    """`genpol train` with TINY's sizes, and without the options that are None."""
    chosen = {**TINY, "env": None, **options}
    return main(["train", *words(**{k: v for k, v in chosen.items() if v is not None})])


def test_two_updates_give_the_numbers_that_they_gave(made, tmp_path, no_page):
    assert by_value(made, offline_updates=2, output=tmp_path / "run") == 0
    first, second = (row for row in rows(tmp_path / "run") if row["reward/mean"])
    golden = {
        "reward/mean": (-0.1138758, -0.1651787),
        "reward/spread": (0.0769910, 0.1387158),
        "kl/forward": (0.0, 2.195179e-05),
        "prdp/loss": (0.001172389, 0.003347605),
        "policy/gradient_norm": (0.01734927, 0.02369873),
    }
    for name, numbers in golden.items():
        found = [float(row[name]) for row in (first, second)]
        assert found == pytest.approx(numbers, rel=1e-3), name
    assert float(first["check/ratio_error"]) < 1e-6 and float(first["prdp/clip_fraction"]) == 0


def test_it_leaves_a_policy_and_the_critic_as_it_was(made, tmp_path):
    run = tmp_path / "run"
    assert by_value(made, output=run, eval_episodes=2) == 0
    found, base = load_policy(run), load_policy(made["flow"])
    assert found.kind == "flow" and found.spec == base.spec and found.env == NAME
    assert found.meta["tuned"] == {"objective": "prdp", "reward": "value", "beta": 0.3}
    moved = [
        n for (n, a), b in zip(found.named_parameters(), base.parameters(), strict=True)
        if not torch.equal(a, b)
    ]  # fmt: skip
    assert moved
    one, two = ValueFunction.load(run), ValueFunction.load(made["value"])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["train/env_steps"] == 0 and summary["train/updates"] == 4
    assert summary["eval/return"] < 0 and (run / "index.html").exists()
    assert load_policy(run / "policy").sample({"state": torch.zeros(1, 3)}, 2, None).shape[1] == 2


@pytest.mark.parametrize(
    "agent",
    [
        "prdp",
        pytest.param("ddpo", marks=pytest.mark.slow),
        pytest.param("nft", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_it_is_the_same_run(made, agent, tmp_path, monkeypatch, no_page):
    """Killed at update 4, after the checkpoint of update 3."""
    options = {"agent": agent, "eval_episodes": 1, "offline_updates": 5}
    options |= {} if agent == "nft" else {"noise_level": 0.4}
    assert by_value(made, output=tmp_path / "straight", **options) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, None)
        assert by_value(made, output=tmp_path / "run", **options) == 130
    assert resume(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", tmp_path / "straight")


@pytest.mark.parametrize(
    "env", ["module_that_is_not_here:Arm", pytest.param(None, marks=pytest.mark.slow)]
)
def test_without_a_simulator_it_trains_and_is_not_evaluated(made, env, tmp_path, capsys):
    """The dataset names an environment that this machine does not have, or none."""
    data = write_demonstrations(tmp_path / "demos.hdf5", env=env)
    assert open_dataset(data).env == env
    policy, value = load_policy(made["flow"]), ValueFunction.load(made["value"])
    policy.env = value.env = env
    policy.save(tmp_path / "base"), value.save(tmp_path / "critic")
    named = {"data": data, "base": tmp_path / "base", "value": tmp_path / "critic"}
    run = tmp_path / "run"
    assert train(**OFFLINE | named, output=run) == 0
    said = capsys.readouterr()
    assert "no evaluation: " in said.err + said.out
    assert "4 updates, not evaluated" in said.out
    assert load_policy(run).env == env
    assert not (run / "index.html").exists()
    assert "eval/return" not in json.loads((run / "summary.json").read_text())
    assert resume(run) == 0  # has nothing left to do
    assert train(**OFFLINE | named, videos=1, output=tmp_path / "filmed") == 2


def refused(capsys, made, **options) -> str:
    """The one error line; nothing was written."""
    output = options["output"]
    assert by_value(made, **options) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1 and not (output / "config.json").exists()
    return lines[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"value": None}, "--agent prdp learns from a value: pass --value"),
        ({"base": "gaussian"}, "a gaussian policy has no denoising steps"),
        ({"base": "black_boxes:Aim"}, "cannot be fine-tuned by reward"),
        ({"noise_level": 0}, "with --noise-level 0 a flow draws none"),
        ({"agent": "grpo", "noise_level": 0}, "--agent grpo scores denoising steps"),
        ({"group_size": 1}, "--group-size must be"),
        ({"target_entropy": 1.0}, "--target-entropy is of other agents"),
        ({"offline_updates": 0}, "would not train: pass --offline-updates"),
        ({"action_chunk": 4}, "pass --action-chunk 2, not 4"),
        ({"agent": "expo", "group_size": None, "inner_steps": None, "beta": 2.0}, "--beta is of"),
    ],
)
def test_what_cannot_be_is_one_line(made, options, said, tmp_path, capsys):
    if options.get("base") == "black_boxes:Aim":
        made, options = made | {"black": "black_boxes:Aim"}, {"base": "black"}
    assert said in refused(capsys, made, output=tmp_path / "run", **options)


@pytest.mark.slow
def test_forward_objectives_need_no_densities(made, tmp_path, no_page):
    options = {"agent": "prdp-forward", "eval_episodes": 1, "offline_updates": 1}
    assert by_value(made, "ddim", output=tmp_path / "ddim", **options) == 0
    assert by_value(made, output=tmp_path / "flow", noise_level=0, **options) == 0
