"""`genpol generate --value` on random pipelines: files, seeds, the page, and what it refuses."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import error_line, words
from tiny_values import saved_value

from genpol.cli import main

STEPS = {"num_inference_steps": 4, "guidance_scale": 3.0, "reward": "tiny_rewards:brightness"}
FOUR = {"num_candidates": 4, "prune_at": [0.5, 0.25]}


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("few") / "few.txt"
    path.write_text('a cat\na "big", brown dog\ntwo owls\n')
    return path


@pytest.fixture(scope="module")
def value(models, tmp_path_factory) -> Path:
    return saved_value(models["sd"], tmp_path_factory.mktemp("value") / "iv")


def generate(**options) -> int:
    lists = {n: v for n, v in options.items() if isinstance(v, list)}
    plain = words(
        **{n: v for n, v in (STEPS | options).items() if n not in lists and v is not None}
    )
    for name, each in lists.items():
        plain += [f"--{name.replace('_', '-')}", *map(str, each)]
    return main(["generate", *plain])


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "images.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=np.int64)


@pytest.fixture(scope="module")
def steered(models, few, value, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("steered") / "out"
    options = {"model": models["sd"], "prompts": few, "value": value, "seed": 5}
    assert generate(output=folder, **options, **FOUR) == 0
    return folder


def test_a_row_says_what_was_valued_and_spent(steered):
    rows = table(steered)
    assert list(rows[0]) == [
        "file", "prompt", "seed", "reward", "reward_mean", "candidates", "scheduler",
        "value_0.5", "value_0.25", "evaluations",
    ]  # fmt: skip
    assert {row["evaluations"] for row in rows} == {"22"}  # guided: 2 (4*2 + 2*1 + 1*1)
    assert {row["candidates"] for row in rows} == {"4"}
    assert all(np.isfinite(float(row["value_0.5"])) for row in rows)
    seeds = [int(row["seed"]) for row in rows]
    assert [(seed - 5) // 4 for seed in seeds] == [0, 1, 2] and seeds != [5, 9, 13]


def test_the_seed_of_a_pruned_picture_draws_it_plainly(steered, models, few, tmp_path):
    for i, row in enumerate(table(steered)):
        one = tmp_path / f"{i}.txt"
        one.write_text(row["prompt"] + "\n")
        out = tmp_path / f"plain{i}"
        assert generate(model=models["sd"], prompts=one, seed=row["seed"], output=out) == 0
        gap = pixels(out / "00000.png") - pixels(steered / row["file"])
        assert np.abs(gap).max() <= 1


def test_one_candidate_is_plain_generation(models, few, value, tmp_path):
    common = {"model": models["sd"], "prompts": few, "seed": 3}
    assert generate(**common, output=tmp_path / "plain") == 0
    assert generate(**common, output=tmp_path / "one", value=value, num_candidates=1) == 0
    for a, b in zip(table(tmp_path / "plain"), table(tmp_path / "one"), strict=True):
        assert a["seed"] == b["seed"] and b["evaluations"] == "8"
        gap = pixels(tmp_path / "plain" / a["file"]) - pixels(tmp_path / "one" / b["file"])
        assert np.abs(gap).max() <= 1


def test_batches_change_nothing(steered, models, few, value, tmp_path):
    options = {"model": models["sd"], "prompts": few, "value": value, "seed": 5, "batch": 3}
    assert generate(output=tmp_path / "out", **options, **FOUR) == 0
    for a, b in zip(table(steered), table(tmp_path / "out"), strict=True):
        assert (a["seed"], a["evaluations"]) == (b["seed"], b["evaluations"])
        assert float(a["value_0.5"]) == pytest.approx(float(b["value_0.5"]), abs=1e-4)


def test_resampling_with_composed_values(models, few, value, tmp_path):
    other = saved_value(models["sd"], tmp_path / "other", 1, std=0.2)
    options = {"model": models["sd"], "prompts": few, "value": [value, other]}
    options |= {"value_weights": [1, -0.3], "num_candidates": 4, "prune_at": [0.5, 0.25]}
    out = tmp_path / "out"
    assert generate(**options, resample=True, temperature=0.1, output=out) == 0
    rows = table(out)
    assert {row["evaluations"] for row in rows} == {"32"}  # all four chains go to the end
    assert "value_0" in rows[0] and {row["copied"] for row in rows} <= {"0", "1"}
    assert "1" in {row["copied"] for row in rows}


def test_a_report_stands_beside_it(models, few, value, tmp_path):
    out = tmp_path / "out"
    options = {"model": models["sd"], "prompts": few, "value": value, "output": out}
    golds = {"gold_reward": "jpeg_compressibility", "guidance_control": "1"}
    assert generate(**options, **FOUR, **golds, report=True) == 0
    page = (out / "report.html").read_text()
    for said in (
        "best of 2",
        "best of 4 (dearer)",
        "guidance 1, 22 steps",
        "guidance 1, best of 5",
    ):
        assert said in page
    assert "--prune-at 0.5 0.25" in page and "jpeg_compressibility, which only judges" in page
    with open(out / "arms.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    steered = [float(row["reward"]) for row in rows if row["arm"] == "steered"]
    assert steered == pytest.approx([float(row["reward"]) for row in table(out)])


def test_what_is_stopped_keeps_what_is_done(models, few, value, tmp_path, monkeypatch, capsys):
    from genpol.steering.picture_chains import PictureChains

    draw, calls = PictureChains.draw, []

    def stopped(self, *args):
        calls.append(args)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return draw(self, *args)

    monkeypatch.setattr(PictureChains, "draw", stopped)
    out = tmp_path / "out"
    options = {"model": models["sd"], "prompts": few, "value": value, "batch": 1, **FOUR}
    assert generate(**options, output=out) == 143
    assert [row["file"] for row in table(out)] == ["00000.png"]
    assert "stopped after 1 of 3 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"value_weights": [1, 2]}, "--value-weights has 2 numbers for 1 values"),
        ({"prune_at": [0.4, 0.7]}, "less than the one before it"),
        ({"prune_at": [1.5]}, "--prune-at"),
        ({"prune_at": [0.7, 0.5, 0.25]}, "can be pruned at most 2 times"),
        ({"prune_at": [0.49, 0.45]}, "two of these are the same step"),
        ({"resample": True, "eta": 0}, "copies would stay identical"),
        ({"temperature": 0.5}, "--temperature is of --resample"),
        ({"report": True, "reward": None}, "--report needs --reward"),
        ({"gold_reward": "gold"}, "--gold-reward is for the page of --report"),
        ({"value": "reward", "reward": None}, "--value reward asks the --reward"),
        ({"best_of": 2}, "use --num-candidates with --value"),
        ({"num_candidates": 0}, "--num-candidates must be at least 1"),
        ({"value": "nowhere/iv"}, 'no image value in "nowhere/iv"'),
        ({"value": None, "num_candidates": 4}, "--num-candidates needs --value"),
        ({"value": None, "num_candidates": None, "resample": True}, "--resample needs --value"),
    ],
)
def test_bad_input_is_one_line(options, said, models, few, value, tmp_path, capsys):
    given = {"model": models["sd"], "prompts": few, "value": value, "num_candidates": 3}
    out = tmp_path / "out"
    assert generate(**given | {"prune_at": None} | options, output=out) == 2
    assert said in error_line(capsys.readouterr().err)
    assert not out.exists()


def test_a_value_of_another_pipeline_is_refused(models, few, value, tmp_path, capsys):
    out = tmp_path / "out"
    assert generate(model=models["sdxl"], prompts=few, value=value, output=out) == 2
    assert "this value is of a StableDiffusionPipeline" in error_line(capsys.readouterr().err)
    assert not out.exists()
