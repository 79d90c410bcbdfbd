"""`genpol bench expo`: what is measured is EXPO, and adds up."""

import json
from functools import partial

import pytest
import torch

from genpol.benchmarks import expo as bench
from genpol.commands.bench import expo as command
from genpol.commands.bench.expo import BenchExpo, run, settings
from offline.errors import InputError

SMALL = {"batch_size": 16, "utd": 3.0, "hidden": (16, 16), "value_ensemble": 3, "num_candidates": 4}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(command, "PROBLEM", command.PROBLEM | SMALL)
    faithful = command.FAITHFUL | {k: v for k, v in SMALL.items() if k in command.FAITHFUL}
    monkeypatch.setattr(command, "FAITHFUL", faithful)
    monkeypatch.setattr(bench, "agreements", partial(bench.agreements, states=128))
    monkeypatch.setattr(command, "BEARABLE", float("inf"))


def test_presets_solve_the_same_problem():
    fast, faithful = settings(BenchExpo()), settings(BenchExpo(preset="faithful"))
    for name, value in command.PROBLEM.items():
        assert getattr(fast, name) == getattr(faithful, name) == value, name
    assert faithful.network == "residual" and not faithful.clip_edits
    assert faithful.candidates == "chain" and not faithful.cache_age
    assert settings(BenchExpo(cache_age=7, candidates="two-step")).cache_age == 7


@pytest.mark.parametrize("preset", ["fast", "faithful"])
def test_the_summary(preset, small, tmp_path):
    config = BenchExpo(preset=preset, env_steps=2, learn_steps=3, device="cpu", output=tmp_path)
    run(config)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for name in ("critic_update_cpu_s", "env_step_cpu_s", "first_update_s", "env_step_wall_s"):
        assert summary[f"bench/{name}"] > 0, name
    parts = {k: v for k, v in summary.items() if k.startswith("bench/part_")}
    assert len(parts) == 7
    step = summary["bench/env_step_cpu_s"]
    assert 0.3 * step < sum(parts.values()) <= step  # they do not overlap
    assert 3 * summary["bench/critic_update_cpu_s"] < step
    assert all(0 <= summary[f"bench/agreement_{name}"] <= 1 for name in bench.CHEAPER)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3
    assert summary["bench/critic_update_gflop"] > 0 and summary["machine/gflops_float32_1"] > 0
    assert 0 < summary["bench/speed_share"] < 2  # a busy machine measures its speed too low


def test_bfloat16_is_left_out_where_it_takes_minutes(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "BEARABLE", 0.0)
    run(BenchExpo(env_steps=1, learn_steps=1, device="cpu", output=tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "bench/agreement_two_step" in summary and "bench/agreement_bf16" not in summary
    assert "this machine's GFLOP/s: float32" in capsys.readouterr().out


def test_an_environment_step_is_what_it_says(small):
    config = settings(BenchExpo())
    agent = bench.make_bench_agent(config)
    task = bench.ToyTask(100)
    calls = []
    for name in ("update_critic", "update_policy"):
        method = getattr(agent, name)
        setattr(agent, name, lambda *a, n=name, m=method: (calls.append(n), m(*a))[1])
    bench.env_step(agent, task, config, torch.Generator())
    assert calls == ["update_critic"] * 3 + ["update_policy"]


def test_the_full_chain_agrees_with_itself(small, monkeypatch):
    config = settings(BenchExpo())
    agent = bench.make_bench_agent(config)
    with torch.no_grad():  # new networks are almost linear, so that one step is as good as ten
        agent.base.policy.head.conditioner.out.weight.mul_(20)
    monkeypatch.setattr(bench, "CHEAPER", {"none": {}, "one_step": {"steps": 1}})
    found = bench.agreements(agent, bench.ToyTask(100), 4, states=64)
    assert found["bench/agreement_none"] == 1 and found["bench/regret_none"] == 0
    assert found["bench/agreement_one_step"] < 1 and found["bench/regret_one_step"] > 0


def test_the_toy_task_rewards_what_no_mode_does():
    task = bench.ToyTask(2000)
    batch = task.sample(500, torch.Generator().manual_seed(0))
    assert batch.act.shape == (500, 1, 4) and batch.act.abs().max() <= 1
    assert torch.equal(batch.obs["state"], task.states[batch.key])
    assert -5 < batch.reward.mean() < -0.1 and batch.reward.max() <= 0


def test_time_since_start_goes_on():
    before = bench.seconds_since_start()
    sum(range(10**6))
    assert 0 < before <= bench.seconds_since_start() < 1e6


@pytest.mark.parametrize("option", ["env_steps", "threads"])
def test_nothing_to_measure(option, tmp_path):
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')} must be at least 1"):
        run(BenchExpo(**{option: 0}, output=tmp_path))
