"""Runs against over-optimisation: filters, a KL target, stopping when a reward falls."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import (
    assert_same_checkpoint,
    checkpoint,
    finetune,
    lasting,
    resume,
    rows,
    small_config,
)
from torch import Tensor

from diffusion.guards.filtering import best_and_worst
from diffusion.guards.kl_target import weight_of


def tuner_of(models, prompts, **options):
    from genpol.commands.finetune.command import build

    needed = {"draws": 2, "inner_steps": 1, "kl_weight": 0.0, "kl_gain": 1.0}
    where = {"model": models["sd"], "prompts": prompts, "reward": "tiny_rewards:brightness"}
    return build(small_config(**(needed | where | options)))[0]


# -- filters --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["prdp", "grpo", "prdp-forward", "nft"])
def test_the_gradient_is_plain_autograd_on_the_rows_that_are_kept(algorithm, models, prompts):
    """One graph over every kept image, with advantages of whole groups."""
    options = {"images_per_prompt": 5, "filter": "best-worst", "filter_keep": 1}
    tuner = tuner_of(models, prompts, algorithm=algorithm, **options)
    seen: dict = {}
    scored, prepared = tuner.scored, tuner.prepared

    def gradients() -> dict[str, Tensor]:
        pairs = tuner.trained.parameters.items()
        return {n: p.grad.clone() for n, p in pairs if p.grad is not None}

    def see_scored(drawn, reward, group):
        seen["scores"], seen["data"] = scored(drawn, reward, group)
        return seen["scores"], seen["data"]

    def see_prepared(rollouts, each):
        seen["whole"] = prepared(rollouts, each)
        return seen["whole"]

    def no_step() -> float:
        seen["gradient"] = gradients()
        return 1.0

    tuner.scored, tuner.prepared, tuner.trained.step = see_scored, see_prepared, no_step
    metrics = tuner.run_epoch()
    assert metrics["filter/kept"] == pytest.approx(2 / 5) and metrics["train/images"] == 10
    whole, scores, data = seen["whole"], seen["scores"], seen["data"]
    kept = best_and_worst(whole.reward, whole.group, 1)
    assert len(kept) == 4 and torch.equal(data.reward, whole.reward[kept])
    if whole.advantage is not None:
        data = replace(data, advantage=whole.advantage[kept])
    steps = (tuner.weights > 0).nonzero().flatten()
    row, step = torch.arange(4).repeat_interleave(len(steps)), steps.repeat(4)
    values = scores.score(row, step)
    table = torch.zeros(4, len(tuner.weights), *values.shape[1:]).index_put((row, step), values)
    tuner.trained.optimiser.zero_grad(set_to_none=True)
    tuner.objective(table, data)[0].backward()
    expected = gradients()
    size = max(float(g.abs().max()) for g in expected.values())
    assert size > 0
    for name, gradient in expected.items():
        assert float((gradient - seen["gradient"][name]).abs().max()) < 1e-5 * size, name


# -- a KL target ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "start"), [("prdp-forward", 0.1), ("nft", 0.5)])
def test_the_constant_falls_below_the_target_and_rises_above_it(algorithm, start, models, prompts):
    options = {"beta": start, "kl_weight": start, "kl_target": 1e6, "algorithm": algorithm}
    tuner = tuner_of(models, prompts, clip=0.01, **options)
    first = tuner.run_epoch()
    assert first["kl/beta"] == start and first["kl/forward"] == 0
    assert weight_of(tuner.objective) == pytest.approx(0.8 * start)
    tuner.kl_target = replace(tuner.kl_target, target=1e-12)
    second = tuner.run_epoch()
    assert second["kl/forward"] > 0  # the weights have moved
    assert weight_of(tuner.objective) == pytest.approx(0.8 * 1.2 * start)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"algorithm": "ddpo"}, "ddpo has none"),
        ({"algorithm": "grpo"}, "--kl-weight 0.01"),
        ({"kl_target": 0}, "kl-target"),
        ({"stop_when": "gold drops"}, 'a reward\'s name and "falls"'),
        ({"stop_when": "gold falls"}, '"gold" is not evaluated'),
        ({"filter": "best-worst"}, "nothing is filtered"),
        ({"filter": "worst"}, "best-worst"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(options, said, models, prompts, tmp_path, capsys):
    given = {"kl_target": 1.0} if "algorithm" in options else {}
    run = tmp_path / "run"
    where = {"model": models["sd"], "prompts": prompts, "output": run}
    assert finetune(**where, **(given | options)) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if "error:" in x]
    assert len(errors) == 1 and said in errors[0]
    assert not run.exists() or not list(run.iterdir())


def test_a_run_with_a_target_and_a_filter_resumes_bit_for_bit(models, prompts, tmp_path):
    options = {
        "model": models["sd"],
        "prompts": prompts,
        "reward": "tiny_rewards:brightness",
        "guidance_scale": 1.0,
        "prompts_per_epoch": 1,
        "images_per_prompt": 3,
        "filter": "best-worst",
        "filter_keep": 1,
        "kl_target": 0.5,
        "algorithm": "nft",
        "kl_weight": 0.01,
        "num_inference_steps": 2,
    }
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    assert finetune(output=straight, **options, epochs=3) == 0
    assert finetune(output=parts, **options, epochs=1) == 0
    assert resume(parts, epochs=3) == 0
    assert_same_checkpoint(straight, parts)
    assert checkpoint(straight)[2]["kl_beta"] == checkpoint(parts)[2]["kl_beta"] != 0.01
    one, two = ([r["kl/beta"] for r in lasting(run)] for run in (straight, parts))
    assert one == two and len(set(one)) == 4  # none before training, and then another each epoch


# -- stopping -------------------------------------------------------------------------------------


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "lora" / "pytorch_lora_weights.safetensors")


@pytest.fixture(scope="module")
def darker(models, prompts, tmp_path_factory) -> Path:
    """A run that trains for darkness and watches brightness, so that it falls from the start."""
    folder = tmp_path_factory.mktemp("darker") / "run"
    code = finetune(
        output=folder,
        model=models["sd"],
        prompts=prompts,
        reward="-1*tiny_rewards:brightness",
        gold_reward="tiny_rewards:brightness",
        stop_when="tiny_rewards:brightness falls",
        stop_patience=2,
        epochs=9,
        eval_every=1,
        eval_images=3,
        num_inference_steps=2,
        learning_rate=3e-2,
        ema=0.5,
        checkpoint_every=3,
    )
    assert code == 0
    return folder


def test_it_stops_and_leaves_the_weights_of_the_best_evaluation(darker, capsys):
    found = json.loads((darker / "summary.json").read_text())
    assert found["stop/early"] == 1 and found["train/epochs"] < 9
    logged = rows(darker)
    falls = [float(row["stop/falls"]) for row in logged]
    assert falls[-2:] == [1, 2] and max(falls) == 2 and len(logged) == found["train/epochs"] + 1
    name = "tiny_rewards:brightness"
    best = max(logged, key=lambda row: float(row[f"eval/{name}"]))
    assert found["stop/weights_epoch"] == int(best["step"]) < found["train/epochs"]
    assert found[f"eval/{name}_after"] == pytest.approx(float(best[f"eval/{name}"]), abs=1e-6)
    _, tensors, _ = checkpoint(darker)
    kept = {n.removeprefix("best."): t for n, t in tensors.items() if n.startswith("best.")}
    flat = {n.replace(".default.weight", ".weight"): t for n, t in kept.items()}
    total = sum(float(t.double().abs().sum()) for t in flat.values())
    left = sum(float(t.double().abs().sum()) for t in weights_of(darker).values())
    assert left == pytest.approx(total, rel=1e-12)


def test_a_stopped_run_says_so_when_it_is_resumed_and_goes_on_with_more_patience(
    darker, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(darker, run)
    before = weights_of(run)
    assert resume(run) == 0
    said = capsys.readouterr().out
    assert "stopped early, after epoch" in said and "raise --stop-patience to go on" in said
    assert lasting(run) == lasting(darker)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(run).items())
    ended = json.loads((run / "summary.json").read_text())["train/epochs"]
    assert resume(run, stop_patience=3) == 0
    assert json.loads((run / "summary.json").read_text())["train/epochs"] > ended
    # As if the patience had been 3 from the start.
    assert float(rows(run)[-1]["stop/falls"]) in (0, 1, 2, 3)


def test_without_a_stop_nothing_of_it_is_logged(models, prompts, tmp_path):
    run = tmp_path / "run"
    where = {"model": models["sd"], "prompts": prompts, "output": run}
    assert finetune(**where, epochs=1, num_inference_steps=2) == 0
    assert not any(name.startswith(("stop/", "filter/", "kl/beta")) for name in rows(run)[0])
    assert float(rows(run)[-1]["diversity/within_group"]) > 0
    assert "eval/diversity" not in rows(run)[0]  # of two prompts
