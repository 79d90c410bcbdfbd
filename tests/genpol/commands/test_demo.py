"""The demo's parts that train policies by reward, at a fraction of their length."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
import torch

import genpol
from genpol.cli import main
from genpol.commands.demo import command as demo
from genpol.runs.interrupts import Interrupted

ASSETS = Path(genpol.__file__).parent / "assets" / "training"


def test_the_assets_are_small_and_fit_each_other():
    pytest.importorskip("h5py")
    from genpol.policies.policy import load_policy
    from robots.datasets.open import open_dataset

    sizes = {p.name: p.stat().st_size for p in ASSETS.rglob("*") if p.is_file()}
    assert sizes["demos.hdf5"] < 1.5e6 and sum(sizes.values()) < 3.5e6
    episodes, policy = open_dataset(str(ASSETS / "demos.hdf5")), load_policy(ASSETS / "policy")
    assert len(episodes) == 40 and episodes.env == "metaworld/pick-place-v3"
    assert sum(bool(episodes[i].success) for i in range(40)) == 14  # as the page says
    assert policy.spec.dim == episodes.spec.dim
    episode = episodes[0]
    assert episode.obs["state"].shape == (len(episode) + 1, 39)
    assert "last_obs" not in episode.meta  # which would say that the last one was missing


def test_training_ends_with_panels(tmp_path, monkeypatch, capsys):
    pytest.importorskip("metaworld")
    short = {"steps": 12, "update_after": 4, "batch_size": 8, "eval_every": 12, "max_steps": 8}
    few = {"eval_episodes": 2, "videos": 1, "wandb": "disabled", "log_every": 4, "hidden": (8, 8)}
    monkeypatch.setattr(demo, "TRAINING", demo.TRAINING | short | few)
    threads = torch.get_num_threads()
    found = demo.training(demo.Demo(output=tmp_path, seed=1000))
    assert found is not None and torch.get_num_threads() == threads
    titles = [panel.title.removeprefix("Trained by reward: ") for panel in found]
    assert titles[0] == "Result" and "The same layouts, before and after" in titles
    assert "14 succeed" in found[0].html and "2 layouts never" in found[0].html
    assert "before training" in found[0].html and "after 12 environment steps" in found[0].html
    run = tmp_path / "training"
    assert json.loads((run / "config.json").read_text())["seed"] == 1000
    assert (run / "value").is_dir() and (run / "edit").is_dir()


def test_a_world_model_ends_with_a_panel(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    from genpol.commands.demo import world_model as demo_world_model
    from genpol.training.record import read_run

    short = {"steps": 36, "start_steps": 20, "update_after": 20, "batch_size": 8, "max_steps": 9}
    few = {"eval_every": 18, "eval_episodes": 2, "wandb": "disabled", "log_every": 4}
    small = {"model_hidden": (8, 8), "model_updates": 10, "model_holdout": 0.2, "model_every": 20}
    shared, model = demo_world_model.SHARED, demo_world_model.MODEL
    monkeypatch.setattr(demo_world_model, "SHARED", shared | short | few | {"hidden": (8, 8)})
    monkeypatch.setattr(demo_world_model, "MODEL", model | small | {"imagined_capacity": 64})
    threads = torch.get_num_threads()
    found = demo.world_model(demo.Demo(output=tmp_path, seed=1000))
    assert found is not None and torch.get_num_threads() == threads
    (html,) = (panel.html for panel in found)
    assert html.count("<video") + html.count("image/gif") == 2 and html.count("image/png") == 1
    words = re.sub("<[^>]*>", "", html)
    assert "before training" in words and "after it" in words and "nan" not in words
    assert "3 networks of 8 x 8 units" in html and "--world-model mle" in html
    runs = [read_run(tmp_path / "world-model" / arm) for arm in demo_world_model.ARMS]
    modelled, plain = (run.config | {"output": ""} for run in runs)
    differing = {name for name in plain if plain[name] != modelled[name]}
    assert "world_model" in differing <= set(demo_world_model.MODEL)
    assert modelled["seed"] == plain["seed"] == 1000
    assert runs[0].summary["train/updates"] == runs[1].summary["train/updates"] == 5 * 16
    ends = [run.at("eval/return", 36) for run in runs]
    assert f"{ends[0]:.4g} with the model and {ends[1]:.4g} without" in words


def test_a_part_that_is_stopped_ends_the_demo_without_a_page(tmp_path, monkeypatch, capsys):
    def stopped(config):
        raise Interrupted("stopped after epoch 3", signal.SIGTERM)

    monkeypatch.setattr(demo, "images", stopped)
    assert main(["demo", "--output", str(tmp_path)]) == 143
    assert "the same command starts it from the beginning" in capsys.readouterr().out
    assert not (tmp_path / "index.html").exists()


def test_a_demo_that_is_under_way_is_left_alone(tmp_path, capsys):
    """A second one would delete the runs of the first."""
    from genpol.runs.run import Run

    with Run(tmp_path / "images", {}, command="finetune", wandb="disabled") as run:
        run.log(1, {"loss": 1.0})
        assert main(["demo", "--output", str(tmp_path)]) == 2
        assert "is in use by process" in capsys.readouterr().err
        assert (tmp_path / "images" / "metrics.csv").read_text() == "step,loss\n1,1.0\n"
