"""`genpol finetune` with several rewards: what is logged, and what is trained on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import tiny_rewards
import torch
from small_runs import finetune, resume, rows, small_config

BOTH = "min(tiny_rewards:brightness,jpeg_compressibility)+0.5*tiny_rewards:ranked"


@pytest.fixture(scope="module")
def run(models, prompts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rewards") / "run"
    options = {"reward": BOTH, "combine": "normalised", "gold_reward": f"{BOTH},{BOTH}"}
    assert finetune(model=models["sd"], prompts=prompts, output=folder, **options) == 0
    return folder


def test_every_reward_is_logged_in_training_and_evaluation(run: Path) -> None:
    names = [
        "tiny_rewards:brightness",
        "jpeg_compressibility",
        "tiny_rewards:ranked",
        "tiny_rewards:ranked/images",
    ]
    first, _, last = rows(run)
    for name in names:
        assert float(last[f"reward/{name}"]) == float(last[f"reward/{name}"])  # no NaN
        assert first[f"eval/reward/{name}"] and last[f"eval/reward/{name}"]
    # A group in training is what was drawn for a prompt; in an evaluation it is one image.
    assert float(last["reward/tiny_rewards:ranked/images"]) == 2
    assert float(last["eval/reward/tiny_rewards:ranked/images"]) == 1
    # The statistics are of the rewards as they are; what is trained on has no mean.
    parts = [float(last[f"reward/{name}"]) for name in names]
    assert float(last["reward/mean"]) == pytest.approx(parts[1] + 0.5 * parts[2], abs=1e-5)
    summary = json.loads((run / "summary.json").read_text())
    assert {f"eval/reward/{name}_before" for name in names} <= set(summary)
    assert json.loads((run / "config.json").read_text())["combine"] == "normalised"
    with open(run / "samples" / "evaluation_after.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    for row in table:
        brightness, jpeg, ranked, _ = (float(row[f"reward/{name}"]) for name in names)
        assert float(row["reward"]) == pytest.approx(min(brightness, jpeg) + 0.5 * ranked)
        assert row[BOTH] == row["reward"]  # --gold-reward, whose commas are not its own


@pytest.mark.slow
def test_a_run_is_resumed_bit_for_bit(run: Path, models, prompts, tmp_path) -> None:
    options = {"reward": BOTH, "combine": "normalised", "gold_reward": "", "epochs": 1}
    part = tmp_path / "part"
    assert finetune(model=models["sd"], prompts=prompts, output=part, **options) == 0
    assert resume(part, epochs=2) == 0
    for name in ("reward/mean", "prdp/loss", "reward/tiny_rewards:ranked"):
        assert rows(part)[-1][name] == rows(run)[-1][name]


@pytest.mark.parametrize("combine", ["raw", "normalised"])
def test_what_is_trained_on(combine: str, models, prompts, monkeypatch) -> None:
    from genpol.commands.finetune.command import build

    expression = "1000*tiny_rewards:brightness+tiny_rewards:ranked"
    options = {"model": models["sd"], "reward": expression, "combine": combine}
    tuner = build(small_config(prompts=prompts, prompts_per_epoch=3, **options))[0]
    seen = []
    monkeypatch.setattr(tuner, "scored", lambda *a, whole=tuner.scored: seen.append(a) or whole(*a))
    monkeypatch.setattr(tiny_rewards, "asked", [])
    tuner.run_epoch()
    reward, group = seen[0][1], seen[0][2]
    assert group.tolist() == [0, 0, 1, 1, 2, 2]
    assert [len(one) for one in tiny_rewards.asked] == [2, 2, 2]  # a group at a time
    means = torch.stack([reward[group == g].mean() for g in range(3)])
    if combine == "normalised":
        assert means.abs().max() < 1e-3
        # Two images a prompt: each reward says 1 and -1, so that the sum is of whole numbers.
        assert torch.allclose(reward, reward.round(), atol=1e-2)
        assert set(reward.round().abs().tolist()) <= {999.0, 1001.0, 1000.0}
    else:
        assert means.abs().min() > 10
