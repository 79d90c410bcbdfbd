"""`genpol collect`: what it writes, what it refuses, and nothing half-written."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from small_runs import error_line, words

from genpol.cli import main
from offline.errors import InputError

pytest.importorskip("metaworld")
pytest.importorskip("h5py")


def collect(sides: str = "", **options) -> int:
    few = {"env": "metaworld/push-v3", "episodes": 6, "sloppy_fraction": 0.5, "seed": 1000}
    return main(["collect", *words(**(few | options)), *sides.split()])


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("demos") / "new" / "demos.hdf5"
    assert collect(output=path) == 0
    return path


def test_the_file_holds_every_episode(written):
    from robots.datasets.robomimic_hdf5 import RobomimicHdf5

    dataset = RobomimicHdf5(written)
    assert len(dataset) == 6 and dataset.env == "metaworld/push-v3"
    assert dataset.obs_shapes == {"state": (39,)} and dataset.spec.gripper_open == -1.0
    episodes = [dataset[i] for i in range(6)]
    assert [e.meta["operator"] for e in episodes].count("sloppy") == 3
    assert all(e.success for e in episodes if e.meta["operator"] == "clean")
    assert dataset.meta["collect"]["episodes"] == 6
    assert dataset.meta["env_args"]["env_kwargs"]["max_steps"] == 200
    actions = np.concatenate([e.actions for e in episodes])
    assert dataset.spec.mean == pytest.approx(actions.mean(0), abs=1e-4)


def test_the_same_seed_gives_the_same_episodes(written, tmp_path, capsys):
    from robots.datasets.robomimic_hdf5 import RobomimicHdf5

    assert collect(output=tmp_path / "again.hdf5") == 0
    one, two = RobomimicHdf5(written), RobomimicHdf5(tmp_path / "again.hdf5")
    assert one.meta["content_hash"] == two.meta["content_hash"]
    said = capsys.readouterr().out
    successes = sum(bool(two[i].success) for i in range(6))
    assert f"6 episodes, {two.lengths.sum()} steps, {successes} successes (clean 3/3, sl" in said
    assert f"train 5, valid 1; content hash {one.meta['content_hash']}\n" in said


def test_two_modes(tmp_path, capsys):
    from robots.datasets.robomimic_hdf5 import RobomimicHdf5

    path = tmp_path / "demos.hdf5"
    options = {"operators": "two-mode", "valid_fraction": 0.5, "max_steps": 4}
    assert collect("--mode-sides x- y+", output=path, **options) == 0
    dataset = RobomimicHdf5(path)
    episodes = [dataset[i] for i in range(6)]
    assert [e.meta["operator"] for e in episodes].count("mode-x-") == 3
    for episode in episodes:
        x, y = episode.meta["bias"]
        assert 0.01 <= (-x if episode.meta["operator"] == "mode-x-" else y) <= 0.035
    assert dataset.meta["collect"]["bias_max"] == 0.035  # what None stood for
    assert dataset.meta["collect"]["mode_sides"] == ["x-", "y+"]
    assert [len(dataset.splits[name]) for name in ("train", "valid")] == [3, 3]
    assert "mode-x- " in capsys.readouterr().out


def test_ogbench(tmp_path, capsys):
    pytest.importorskip("ogbench")
    from robots.datasets.robomimic_hdf5 import RobomimicHdf5

    path = tmp_path / "demos.hdf5"
    options = {"env": "ogbench/cube-single-v0", "operators": "two-mode", "bias_max": 0.01}
    assert collect(output=path, episodes=2, **options) == 0
    dataset = RobomimicHdf5(path)
    assert dataset.env == "ogbench/cube-single-v0" and dataset.obs_shapes == {"state": (28,)}
    assert dataset[0].meta["horizon"] == 200 and dataset[0].success is not None
    won = dataset[0].success + dataset[1].success
    assert f"{won} successes" in capsys.readouterr().out


def test_options_reach_the_operators(tmp_path):
    from robots.datasets.robomimic_hdf5 import RobomimicHdf5

    path = tmp_path / "demos.hdf5"
    options = {"max_steps": 4, "bias_min": 0.05, "bias_max": 0.05, "sloppy_noise": 0}
    assert collect(output=path, **options) == 0
    dataset = RobomimicHdf5(path)
    assert set(dataset.lengths) == {4}
    sloppy = [dataset[i] for i in range(6) if dataset[i].meta["operator"] == "sloppy"]
    assert [np.hypot(*e.meta["bias"]) for e in sloppy] == pytest.approx([0.05] * 3)
    assert all(e.actions[0, 3] == 0 for e in sloppy)  # the script's own, without noise
    assert not any(dataset[i].terminated for i in range(6))


def test_images(tmp_path, capsys):
    from robots.datasets.robomimic_hdf5 import RobomimicHdf5

    path = tmp_path / "demos.hdf5"
    code = collect(output=path, image_size=32, episodes=1, max_steps=3)
    if code and "OpenGL" in capsys.readouterr().err:
        pytest.skip("no OpenGL here")
    assert code == 0
    images = RobomimicHdf5(path)[0].obs["image"]
    assert images.shape == (4, 32, 32, 3) and images.dtype == np.uint8 and images.std() > 10


def test_an_existing_file_is_kept_unless_told_otherwise(written, capsys):
    before = written.read_bytes()
    assert collect(output=written) == 2
    assert "exists; pass another --output, or --overwrite" in error_line(capsys.readouterr().err)
    assert written.read_bytes() == before
    assert collect(output=written, overwrite=True) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"env": "metaworld/psh-v3"}, 'mean "metaworld/push-v3"'),
        ({"env": "Hopper-v5"}, "has no scripted expert"),
        ({"env": "ogbench/antmaze-medium-v0"}, "has no scripted expert"),
        ({"operators": "two-mode", "bias_min": 0.05}, "drawn from 0.05 to 0.035 m"),
        ({"operators": "two-mode", "sides": "--mode-sides x+ x+"}, "sides that differ"),
        ({"valid_fraction": 1.0}, "--valid-fraction must be below 1"),
        ({"episodes": 0}, "--episodes must be at least 1"),
        ({"sloppy_fraction": 1.5}, "--sloppy-fraction must be at most 1"),
        ({"bias_min": 0.08}, "drawn from 0.08 to 0.06 m"),
        ({"noise": "nan"}, "--noise must be a finite number"),
        ({"max_steps": 0}, "--max-steps must be at least 1"),
        ({"image_size": 0}, "--image-size must be at least 1"),
    ],
)
def test_bad_input_is_one_line(options, said, tmp_path, capsys):
    assert collect(output=tmp_path / "new" / "demos.hdf5", **options) == 2
    assert said in error_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file(tmp_path, capsys):
    assert collect(output=tmp_path) == 2
    assert "is a folder" in error_line(capsys.readouterr().err)


def break_off(monkeypatch, at, what):
    """`what` happens in the episode number `at`; returns a list that grows with every episode."""
    import robots.operators.collect

    run_episode, calls = robots.operators.collect.run_episode, []

    def broken(*args):
        calls.append(args)
        if len(calls) == at:
            what()
        return run_episode(*args)

    monkeypatch.setattr(robots.operators.collect, "run_episode", broken)
    return calls


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_a_signal_stops_goes_on(number, code, written, tmp_path, monkeypatch, capsys):
    from robots.datasets.robomimic_hdf5 import RobomimicHdf5

    output, partial = tmp_path / "demos.hdf5", tmp_path / "demos.partial.hdf5"
    with monkeypatch.context() as patch:
        calls = break_off(patch, 2, lambda: os.kill(os.getpid(), number))
        assert collect(output=output) == code
    assert len(calls) == 2 and list(tmp_path.iterdir()) == [partial]
    assert len(RobomimicHdf5(partial)) == 2
    assert f"2 of 6 episodes are in {partial}; the same command" in capsys.readouterr().out
    assert collect(output=output, seed=3) == 2
    assert "(--seed 1000, not 3)" in capsys.readouterr().err.splitlines()[-1]
    calls = break_off(monkeypatch, 99, lambda: None)
    assert collect(output=output) == 0
    assert len(calls) == 4 and list(tmp_path.iterdir()) == [output]
    one, two = RobomimicHdf5(written), RobomimicHdf5(output)
    assert one.meta["content_hash"] == two.meta["content_hash"] and one.spec == two.spec
    assert one.meta["collect"] == two.meta["collect"]
    assert all((one.splits[name] == two.splits[name]).all() for name in ("train", "valid"))
    assert [one[i].meta for i in range(6)] == [two[i].meta for i in range(6)]


def test_an_error_in_an_episode_keeps_those_before_it(tmp_path, monkeypatch, capsys):
    def fail():
        raise InputError("the simulator lost the object")

    break_off(monkeypatch, 3, fail)
    assert collect(output=tmp_path / "demos.hdf5") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error: the simulator lost the object [2 of 6 episodes are in" in error


def test_what_is_stopped_in_the_first_episode_leaves_nothing(tmp_path, monkeypatch, capsys):
    def fail():
        raise InputError("the simulator lost the object")

    def insist():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    for what, code in ((fail, 2), (insist, 143)):
        with monkeypatch.context() as patch:
            break_off(patch, 1, what)
            assert collect(output=tmp_path / "demos.hdf5") == code
        assert list(tmp_path.iterdir()) == []
