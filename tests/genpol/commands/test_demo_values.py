"""The demo's parts about values, at a fraction of their length."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from genpol.commands.demo import command as demo
from genpol.commands.demo import distilled, steered_images


def words(html: str) -> str:
    return re.sub("<[^>]*>", " ", html)


@pytest.mark.slow
def test_values_of_images_end_with_a_panel(tmp_path, monkeypatch):
    few = {"num_prompts": 2, "images_per_prompt": 2, "num_held_out": 1, "steps": 2}
    monkeypatch.setattr(steered_images, "VALUE", few)
    monkeypatch.setattr(steered_images, "PICTURES", {"num_prompts": 2, "num_candidates": 2})
    for name in ("BY_REWARD", "BY_VALUE"):
        options = getattr(steered_images, name)
        monkeypatch.setattr(steered_images, name, options | {"prune_at": (0.3,)})
    (panel,) = demo.steered_images(demo.Demo(output=tmp_path, seed=1000, threads=1))
    said = words(panel.html)
    assert panel.title == "Images steered by a value"
    assert "The reward (attributes) is" in said and "one sample takes 10" in said
    assert "from 4 images of 2 prompts in 2 steps" in said and "within 1 held-out prompts" in said
    commands = ("--value reward --num-candidates 2", "genpol value --model tiny --num-prompts 2")
    assert all(command in said for command in commands)
    assert panel.html.count("<img") >= 4
    folder = tmp_path / "steered-images"
    assert (folder / "value" / "value" / "value.json").is_file()
    for pictures in ("by-reward", "by-value"):
        assert (folder / pictures / "images.csv").is_file()


def test_an_earlier_demo_is_replaced(tmp_path, monkeypatch):
    """Folders of the commands are; pictures of anybody else are left."""
    seen: list[Path] = []
    monkeypatch.setattr(steered_images, "panel", lambda folder, *rest: seen.append(folder))
    pictures = tmp_path / "steered-images" / "by-value"
    pictures.mkdir(parents=True)
    (pictures / "own.png").write_bytes(b"x")
    demo.steered_images(demo.Demo(output=tmp_path))
    assert (pictures / "own.png").is_file()
    (pictures / "images.csv").write_text("file\n")
    demo.steered_images(demo.Demo(output=tmp_path))
    assert not pictures.exists() and seen == [tmp_path / "steered-images"] * 2


EPISODES = """arm,initial_state,success,return,steps
base,11,1,1.0,3
base,12,0,0.5,8
steered,12,1,1.0,4
steered,11,1,1.0,4
random,11,0,0.0,8
"""


def test_distilling_ends_with_a_panel(tmp_path, monkeypatch):
    pytest.importorskip("metaworld")
    from robots.envs import make

    monkeypatch.setattr(make, "make_env", partial(make.make_env, max_steps=8))
    usual = distilled.SETTINGS
    assert usual["offline_updates"] % usual["log_every"] == 0  # so that the last one is logged
    short = {"offline_updates": 2, "batch_size": 2, "group_size": 2, "log_every": 1}
    off = {"wandb": "disabled", "max_steps": 8}
    monkeypatch.setattr(distilled, "SETTINGS", usual | short | off)
    monkeypatch.setattr(distilled, "TIMED", 1)
    monkeypatch.setattr("genpol.training.report.write_page", lambda folder: folder)
    steered = tmp_path / "steering"
    steered.mkdir()
    (steered / "episodes.csv").write_text(EPISODES)
    (panel,) = demo.distilled(demo.Demo(output=tmp_path, seed=1000))
    said = words(panel.html)
    assert "After 2 updates" in said and "Its beta of 1 is the temperature" in said
    assert "2 episodes, the same initial states" in said and "nan" not in said
    assert (tmp_path / "distilled" / "policy" / "policy.json").is_file()


def test_the_panel_says_what_was_found(tmp_path):
    path = tmp_path / "episodes.csv"
    path.write_text(EPISODES)
    seeds, success = distilled.read_episodes(path)
    assert seeds == [11, 12]
    assert success["base"].tolist() == [True, False] and success["steered"].tolist() == [True, True]
    config = distilled.settings(tmp_path, tmp_path, tmp_path, tmp_path, 0, 1, 0.5)
    found = distilled.Found(
        success | {"distilled": np.array([False, False])}, {"base": 2.0, "steered": 9.25}, 1.5, 160
    )
    said = words(distilled.panel_of(found, config, 32).html)
    assert re.search(r"one sample\s+50 % \[9, 91\]\s+2.0 ms", said)
    assert re.search(r"steered, best of 32\s+100 % \[34, 100\]\s+9.2 ms", said)
    assert re.search(r"distilled, one sample\s+0 % \[0, 66\]\s+2.0 ms", said)
    assert "Its beta of 0.5" in said and "1.50 nats per chunk" in said
