"""`genpol finetune --pairs` from end to end: what it leaves, resuming, and what it refuses."""

from __future__ import annotations

import json

import pair_files
import pytest
from small_runs import assert_same_checkpoint, error_line, lasting, resume, rows, words

from genpol.cli import main

SMALL = {
    "algorithm": "dpo",
    "epochs": 2,
    "prompts_per_epoch": 2,
    "draws": 1,
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "held_out": 0.3,
    "eval_images": 2,
    "eval_every": 1,
    "wandb": "disabled",
}


def finetune(**options) -> int:
    return main(["finetune", *words(**(SMALL | options))])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return pair_files.pair_file(tmp_path_factory.mktemp("pairs"), 8)


def test_pairs_alone_are_enough_and_a_run_goes_on_bit_for_bit(pairs, models, tmp_path, capsys):
    common = {"model": models["sd"], "pairs": pairs}
    assert finetune(output=tmp_path / "straight", **common) == 0
    said = capsys.readouterr().out
    assert 'prompts from "prompt", images from "chosen" and "rejected"' in said
    assert "held-out implicit accuracy 0.5000 -> " in said and "reward" not in said
    summary = json.loads((tmp_path / "straight" / "summary.json").read_text())
    assert summary["eval/implicit_accuracy_before"] == 0.5
    assert summary["eval/implicit_margin_before"] == 0 != summary["eval/implicit_margin_after"]
    table = rows(tmp_path / "straight")
    assert float(table[0]["eval/implicit_accuracy"]) == 0.5
    assert float(table[1]["eval/implicit_margin"]) != 0
    assert all(float(row["dpo/loss"]) > 0 for row in table[1:])
    assert (tmp_path / "straight" / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert not (tmp_path / "straight" / "samples").exists()

    assert finetune(output=tmp_path / "two", **(common | {"epochs": 1})) == 0
    assert resume(tmp_path / "two", epochs=2) == 0
    assert_same_checkpoint(tmp_path / "two", tmp_path / "straight")
    assert lasting(tmp_path / "two")[2] == lasting(tmp_path / "straight")[2]
    capsys.readouterr()
    pairs.write_bytes(pairs.read_bytes() + pairs.read_bytes().splitlines(True)[0])
    assert resume(tmp_path / "two", epochs=3) == 2
    assert "the prompts of the run" in error_line(capsys.readouterr().err.splitlines()[-1])


def test_with_a_reward_evaluations_draw_too(pairs, models, tmp_path, capsys):
    output = tmp_path / "run"
    more = {"reward": "tiny_rewards:brightness", "epochs": 1}
    assert finetune(model=models["sd"], pairs=pairs, output=output, **more) == 0
    said = capsys.readouterr().out
    assert "held-out implicit accuracy" in said and "held-out reward" in said
    assert "eval/reward" in rows(output)[0] and (output / "samples").is_dir()


BAD = {
    "another objective": ({"algorithm": "nft"}, "--pairs is for --algorithm dpo; nft learns"),
    "prompts as well": ({"prompts": "world"}, "leave out --prompts"),
    "no such file": ({"pairs": "nowhere.jsonl"}, "there is no such file"),
    "wrong columns": ({"pair_columns": "a,b"}, "--pair-columns a,b"),
    "all held out": ({"held_out": 1.0}, "--held-out"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, pairs, models, tmp_path, capsys):
    options, said = BAD[case]
    given = {"model": models["sd"], "pairs": pairs, "output": tmp_path / "run"} | options
    assert finetune(**given) == 2
    assert said in error_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_columns_without_pairs_are_refused(models, capsys):
    assert finetune(model=models["sd"], pair_columns="a,b,c") == 2
    assert "--pair-columns names the columns of --pairs" in error_line(capsys.readouterr().err)
