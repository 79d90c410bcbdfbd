"""The real LeRobot: its datasets are read here, recordings are read there, its policies sample.

It runs in an interpreter of its own, which `python -m scripts.lerobot_environment DIR` makes.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from real_lerobot import CAMERAS, FPS, LENGTHS, SIZE, colour

from robots.datasets.open import open_dataset

VARIABLE = "GENPOL_LEROBOT_PYTHON"
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        VARIABLE not in os.environ,
        reason=f"{VARIABLE} names no Python with LeRobot: python -m scripts.lerobot_environment",
    ),
    pytest.mark.timeout(1800),
]


def lerobot(*arguments: str | Path) -> dict:
    """What LeRobot does, see tests/helpers/real_lerobot.py."""
    helper = ROOT / "tests" / "helpers" / "real_lerobot.py"
    done = subprocess.run(
        [os.environ[VARIABLE], str(helper), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Written by LeRobot's own writer, with two AV1 videos."""
    folder = tmp_path_factory.mktemp("lerobot") / "toy"
    assert lerobot("write", folder) == {"frames": sum(LENGTHS)}
    return folder


def test_a_dataset_of_lerobot_is_read_with_its_videos(dataset):
    episodes = open_dataset(dataset, success="all", images=CAMERAS, image_size=32)
    assert episodes.lengths.tolist() == list(LENGTHS) and episodes.meta["fps"] == FPS
    assert episodes.obs_shapes == {
        "images.top": (32, 32, 3), "images.wrist": (32, 32, 3), "state": (3,)
    }  # fmt: skip
    whole = open_dataset(dataset, images=["observation.images.wrist"])
    for index, length in enumerate(LENGTHS):
        episode = episodes[index]
        assert episode.success and episode.language == f"task {index % 2}"
        assert episode.actions[:, 0] == pytest.approx(np.arange(length) / 20)
        assert episode.obs["state"][:-1, 1].tolist() == list(range(length))
        greys = [colour(index, step) for step in range(length)]
        for camera, name in enumerate(CAMERAS):
            seen = episode.obs[f"images.{name}"]
            assert seen[:-1, :, -8:].mean((1, 2, 3)) == pytest.approx(greys, abs=4)
            assert seen[:, :, :8].mean() == pytest.approx(250 - 60 * camera, abs=4)
        assert whole[index].obs["images.wrist"].shape == (length + 1, *SIZE, 3)
        assert whole[index].success is None


def test_the_commands_learn_from_it(dataset, tmp_path):
    """All succeeded, the videos are named, and the value sees pictures of 16 pixels."""
    from genpol.commands.value.command import run
    from genpol.commands.value.options import Value
    from offline.critics.value import ValueFunction

    run(
        Value(
            data=(str(dataset),),
            success="all",
            image_keys=("top",),
            image_size=16,
            steps=2,
            batch_size=4,
            action_chunk=2,
            hidden=(8,),
            output=tmp_path / "value",
        )
    )
    value = ValueFunction.load(tmp_path / "value")
    assert value.obs_shapes == {"images.top": (16, 16, 3), "state": (3,)}


def test_policies_of_lerobot_sample_whatever_the_observations_are_called(dataset, tmp_path):
    lerobot("policies", dataset, tmp_path)
    found = lerobot("sample", tmp_path)
    assert found["act"]["shape"] == [1, 5, 8, 2]
    assert found["diffusion"]["shape"] == [1, 5, 6, 2]
    assert found["act"]["spread"] < 1e-5 < 1e-3 < found["diffusion"]["spread"]
    for name in ("act", "diffusion"):
        assert found[name]["again"] == 0  # observation/state is observation.state
        assert found[name]["swapped"] > 1e-6  # each camera is its own


def test_a_recording_is_read_by_lerobots_loader(tmp_path):
    from recordings import converted

    folder = tmp_path / "recorded"
    ours = converted(
        folder,
        {"states": (1, 2, 3), "pictures": True},
        {"states": (4, 5), "pictures": True, "prompt": "pull"},
    )
    theirs = lerobot("read", folder)
    steps = int(ours.lengths.sum())
    assert theirs["episodes"] == 2 and theirs["fps"] == 10
    assert len(theirs["columns"]["action"]) == steps
    actions = np.concatenate([ours[i].actions for i in range(2)])
    assert np.array(theirs["columns"]["action"]) == pytest.approx(actions)
    states = np.concatenate([ours[i].obs["state"][:-1] for i in range(2)])
    assert np.array(theirs["columns"]["observation.state"]) == pytest.approx(states)
    assert theirs["columns"]["episode_index"] == [
        [i] for i in range(2) for _ in range(ours.lengths[i])
    ]
    assert {"next.reward", "next.done", "next.success"} <= set(theirs["columns"])
    assert set(theirs["tasks"]) == {"push", "pull"}
    (pictures,) = theirs["pictures"].values()
    assert pictures == pytest.approx(10 * states[:, 0], abs=4)
    assert {"mean", "std", "min", "max", "q01", "q99"} <= set(theirs["stats"])
