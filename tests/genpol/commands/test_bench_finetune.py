"""`genpol bench finetune` on a random tiny pipeline: same gradients, times that add up."""

from __future__ import annotations

import json
import time

import pytest
import torch

from diffusion.errors import InputError
from genpol.benchmarks.ddpo import ddpo_epoch
from genpol.commands.bench.finetune import (
    BenchFinetune,
    gradient,
    gradient_error,
    rewind,
    run,
    snapshot,
)
from genpol.commands.finetune.command import build
from genpol.commands.finetune.options import Finetune
from genpol.runs.measure import ModelClock, reset_peak

REWARD = "test_bench_finetune:redness"


def redness(images, prompts):
    """(B,), smooth, so that no two images tie."""
    return images[:, 0].mean((1, 2))


def constant(images, prompts):
    return torch.ones(len(images))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_models import tiny_sd

    folder = tmp_path_factory.mktemp("tiny_sd")
    tiny_sd().save_pretrained(folder)
    return str(folder)


def tuner(model, **options):
    settings = {
        **{"reward": REWARD, "prompts": "animals", "gold_reward": "", "beta": 3e-5, "clip": 1e-3},
        **{"prompts_per_epoch": 2, "images_per_prompt": 3, "inner_steps": 1, "device": "cpu"},
        **{"num_inference_steps": 4, "guidance_scale": 3.0, "learning_rate": 1e-3},
        **{"step_weights": "uniform", "lora_rank": 2, "lora_targets": "attention"},
        **{"rollout_batch": 4, "micro_batch": 5},
    }
    return build(Finetune(model=model, **settings | options))[0]


@pytest.mark.parametrize("weights", ["uniform", pytest.param("skip_last", marks=pytest.mark.slow)])
def test_both_loops_have_the_same_gradient(model, weights):
    mine = tuner(model, step_weights=weights)
    assert gradient_error(mine) < 1e-4
    assert mine.epoch == 1
    assert gradient_error(mine) < 1e-4  # away from the LoRA's start, where half of it is zero


@pytest.mark.slow
def test_both_loops_take_the_same_inner_steps(model):
    # Targets R / beta of the log-ratios' own size, so that pass 1 of later steps matters.
    mine = tuner(model, inner_steps=3, step_weights="skip_last", beta=1.0, clip=1.0)
    mine.run_epoch()  # so that every gradient is of ordinary size
    start = snapshot(mine)
    mine.run_epoch()
    ours = gradient(mine)
    rewind(mine, start)
    ddpo_epoch(mine)
    assert mine.trained.updates == start[1]["updates"] + 3
    assert float((ours - gradient(mine)).norm() / ours.norm()) < 1e-2
    rewind(mine, start)
    assert mine.epoch == 1
    assert all(torch.equal(t, start[0][n]) for n, t in mine.state()[0].items())


def test_bench_writes_its_numbers(model, tmp_path, capsys):
    folder = tmp_path / "b"
    run(
        BenchFinetune(
            **{"model": model, "reward": REWARD, "prompts": "animals", "epochs": 2},
            **{"prompts_per_epoch": 2, "images_per_prompt": 3, "num_inference_steps": 3},
            **{"guidance_scale": 3.0, "device": "cpu", "output": folder},
        )
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["bench/images"] == 12
    assert summary["bench/gradient_error"] < 1e-4
    speeds = summary["bench/images_per_second"], summary["bench/images_per_second_ddpo"]
    assert summary["bench/ratio"] == pytest.approx(speeds[0] / speeds[1]) and min(speeds) > 0
    for suffix in ("", "_ddpo"):
        assert 0 < summary[f"bench/model_share{suffix}"] < 1
        assert summary[f"bench/cpu_seconds_per_image{suffix}"] > 0
        assert (f"bench/peak_mb{suffix}" in summary) == reset_peak("cpu")
        assert summary.get(f"bench/peak_mb{suffix}", 100.0) > 50
    for part in ("rollout", "training"):
        speeds = [summary[f"bench/{part}_images_per_second{end}"] for end in ("", "_plain")]
        assert min(speeds) > 0
        assert summary[f"bench/{part}_ratio"] == pytest.approx(speeds[0] / speeds[1])
    assert 0 < summary["bench/model_share_plain"] < 1
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    assert json.loads((folder / "config.json").read_text())["command"] == "bench finetune"
    assert "images per second" in capsys.readouterr().out


def test_a_reward_that_ties_everything_is_refused(model):
    with pytest.raises(InputError, match="no gradient"):
        gradient_error(tuner(model, reward="test_bench_finetune:constant"))


class Sleeper(torch.nn.Module):
    """Sleeps 20 ms in its forward, after that of another one inside, as recomputation nests."""

    def __init__(self, inner=None):
        super().__init__()
        self.inner, self.weight = inner, torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        time.sleep(0.02)
        return (self.inner(x) if self.inner else x) * self.weight


def test_clock_counts_nested_calls_once_and_leaves_no_trace():
    inner = Sleeper()
    outer = Sleeper(inner)
    with ModelClock([outer, inner], "cpu") as clock:
        start = time.perf_counter()
        out = outer(torch.ones(()))
        spent = clock.seconds
        assert 0.04 <= spent <= time.perf_counter() - start  # 0.06 if the inner counted twice
        time.sleep(0.02)
        assert clock.seconds == spent  # outside of the networks
        clock.timed(torch.Tensor.backward)(out)
        assert clock.seconds > spent and float(outer.weight.grad) == 1
    before = clock.seconds
    outer(torch.ones(()))
    assert clock.seconds == before
