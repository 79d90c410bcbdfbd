"""`genpol value --model`: the run folder it leaves, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import error_line, lasting, words
from training_runs import differences

from diffusion.values.config import ImageValueConfig
from diffusion.values.image_value import load_value
from genpol.cli import main
from genpol.commands.parsing import parse
from genpol.commands.value.options import Value
from genpol.runs import checkpoints
from genpol.runs.state_tree import unflatten
from genpol.training.image_chains import ImageChains
from offline.critics.value_config import ValueConfig

SMALL: dict[str, Any] = {
    "reward": "tiny_rewards:brightness",
    "held_out": 0.3,
    "num_prompts": 6,
    "images_per_prompt": 3,
    "num_held_out": 2,
    "num_inference_steps": 3,
    "guidance_scale": 2.0,
    "steps": 6,
    "batch_size": 6,
    "channels": 8,
    "blocks": 1,
    "log_every": 3,
    "checkpoint_every": 2,
    "device": "cpu",
    "wandb": "disabled",
}


def value(**options: Any) -> int:
    return main(["value", *words(**(SMALL | options))])


def go_on(folder: Path, **options: Any) -> int:
    return main(["value", "--resume", str(folder), *words(**options)])


@pytest.fixture(scope="module")
def straight(models, prompts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("value") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genpol.training.image_chains.IMAGES", 6)  # of a round: two prompts
        assert value(model=models["sd"], prompts=prompts, output=folder) == 0
    return folder


def test_what_a_run_leaves(straight, models):
    summary = json.loads((straight / "summary.json").read_text())
    assert summary["train/steps"] == 6 and summary["data/images"] == 24
    assert summary["data/reward_calls"] == 24  # brightness has nothing to do with prompts
    assert {"value/loss", "value/rank", "value/rank@3", "value/r2@0"} <= set(summary)
    rows = lasting(straight)
    assert [row["step"] for row in rows] == ["3", "6"] and "value/share_of_best@2" in rows[0]
    assert not (straight / "chains").exists()
    assert list((straight / "samples").glob("*.png"))
    page = (straight / "report.html").read_text()
    assert "Images in the order of their values" in page and "noise level" in page
    config = json.loads((straight / "config.json").read_text())
    assert config["model"] == str(models["sd"]) and "critic" not in config and "data" not in config
    made = load_value(straight)
    assert made.about.pipeline == "StableDiffusionPipeline"
    assert made.about.reward == SMALL["reward"] and made.about.drawn["eta"] == 1.0
    assert [row["step"] for row in made.about.held_out] == [0, 1, 2, 3]
    assert made.meta["steps"] == 6 and "unfinished" not in made.meta


def stopping(monkeypatch, rounds: int | None, step: int | None, number: int | None) -> None:
    """A signal (or death, without a number) after some rounds of drawing, or after a step."""
    from genpol.training.dataset_session import DatasetSession

    def strike() -> None:
        if number is None:
            raise KeyboardInterrupt
        signal.raise_signal(number)

    one_round, after, done = ImageChains._round, DatasetSession._after, []

    def drawn(self, *args):
        found = one_round(self, *args)
        done.append(found)
        if len(done) == rounds:
            strike()
        return found

    def stepped(self):
        after(self)
        if self.steps.step == step:
            strike()

    monkeypatch.setattr(ImageChains, "_round", drawn)
    monkeypatch.setattr(DatasetSession, "_after", stepped)


def state(folder: Path) -> dict[str, Any]:
    found = checkpoints.latest(folder / "checkpoints")
    assert found is not None
    tree = unflatten(*found[1:])
    tree["steps"].pop("seconds")
    tree["steps"]["metrics"].pop("time/seconds_per_step", None)
    tree["steps"]["learning"].pop("cpu_seconds")
    tree.pop("random")
    return tree


def assert_same(one: Path, two: Path) -> None:
    assert differences(state(one), state(two)) == []
    assert lasting(one) == lasting(two)
    weights = [load_file(next((run / "value").glob("*.safetensors"))) for run in (one, two)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert load_value(one).about == load_value(two).about


def test_stopped_and_killed_in_both_halves_and_resumed(
    straight, models, prompts, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    options = {"model": models["sd"], "prompts": prompts, "output": run}
    monkeypatch.setattr("genpol.training.image_chains.IMAGES", 6)  # one round and three
    with monkeypatch.context() as patch:
        stopping(patch, 2, None, signal.SIGTERM)
        assert value(**options) == 143
    assert f"stopped after 12 of 24 images; to continue: genpol value --resume {run}" in (
        capsys.readouterr().out
    )
    kept = {path.name: path.read_bytes() for path in (run / "chains").iterdir()}
    assert len(kept) == 2 and not (run / "value").exists()
    with monkeypatch.context() as patch:
        stopping(patch, None, 5, None)
        assert go_on(run) == 130
    assert {name: (run / "chains" / name).read_bytes() for name in kept} == kept
    with pytest.warns(UserWarning, match="unfinished, it has taken 4 of 6 steps"):
        load_value(run)
    (run / "chains" / sorted(kept)[0]).write_bytes(b"torn")
    (run / "chains" / "train-000004.safetensors").unlink()
    assert go_on(run) == 0  # what was lost is drawn again
    assert_same(run, straight)


def test_a_finished_run_says_so(straight, capsys):
    assert go_on(straight) == 0
    assert "has already run 6 steps; raise --steps to go on" in capsys.readouterr().out


@pytest.mark.slow
def test_more_steps_go_on(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    assert go_on(run, steps=8) == 0
    assert load_value(run).meta["steps"] == 8
    assert json.loads((run / "config.json").read_text())["steps"] == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": "x.hdf5"}, "--data is of a critic for robots"),
        ({"critic": "iql"}, "--critic is of a critic for robots"),
        ({"hidden": 8}, "--hidden is of a critic for robots"),
        ({"reward": "sparse"}, "sparse"),
        ({"images_per_prompt": 1}, "--images-per-prompt"),
        ({"memory_gb": 1e-6}, "--memory-gb is 1e-06: raise it, or lower"),
        ({"sampler": "cps"}, "--sampler cps is for flow models"),
        ({"prompts": "nowhere.txt"}, "nowhere.txt"),
        ({"lora": "nowhere"}, "no LoRA at"),
        ({"channels": 0}, "--channels"),
        ({"eta": 1.5}, "--eta"),
    ],
)
def test_what_is_refused(options, said, models, prompts, tmp_path, capsys):
    given = {"model": models["sd"], "prompts": prompts, "output": tmp_path / "run"} | options
    assert value(**given) == 2
    assert said in error_line(capsys.readouterr().err)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_reward_that_tells_nothing_leaves_no_run(models, prompts, tmp_path, capsys):
    given = {"model": models["sd"], "prompts": prompts, "output": tmp_path / "run"}
    assert value(**given, **{"reward": "tiny_rewards:constant"}) == 2
    assert "the reward is the same for all 3 images of every" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()
    assert not (tmp_path / "run" / "chains").exists()


def test_the_defaults_are_those_of_learning():
    parsed = parse(Value, ["--model", "tiny"], "genpol value")
    for name, default in asdict(ImageValueConfig()).items():
        assert getattr(parsed, name) == default, name
    assert parse(Value, ["--data", "x", "--steps", "5"], "genpol value").lr == ValueConfig().lr
    assert parse(Value, ["--resume", "x", "--model", "tiny"], "genpol value").steps == Value().steps


def test_options_of_images_need_a_model(tmp_path, capsys):
    line = ["value", "--data", "x.hdf5", "--output", str(tmp_path / "run")]
    assert main([*line, "--num-prompts", "3"]) == 2
    assert "--num-prompts is of the value of an image pipeline: add --model" in error_line(
        capsys.readouterr().err
    )
    assert main([*line, "--reward", "attributes"]) == 2
    assert "--reward expects one of sparse, dataset with --data" in error_line(
        capsys.readouterr().err
    )
    assert main(["value"]) == 2
    assert "--data (robots) or --model (images) is needed" in error_line(capsys.readouterr().err)


def test_another_model_or_other_prompts_do_not_go_on(straight, models, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    path = run / "config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"model": str(models["sd_v"])}))
    assert go_on(run, steps=8) == 2
    assert 'the model of the run in "' in error_line(capsys.readouterr().err)
    path.write_text(json.dumps(document | {"prompts_fingerprint": "0"}))
    assert go_on(run, steps=8) == 2
    assert 'the prompts of the run in "' in error_line(capsys.readouterr().err)
    assert go_on(run, channels=16) == 2
    assert "--channels 16 differs from 8" in error_line(capsys.readouterr().err)
