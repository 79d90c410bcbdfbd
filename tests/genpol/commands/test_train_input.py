"""What `genpol train` refuses: one line each, and nothing written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from toy_reach import demonstration, write_demonstrations
from training_runs import resume, train

from offline.data.episodes import Episode


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return write_demonstrations(tmp_path_factory.mktemp("data") / "demos.hdf5")


@pytest.fixture(scope="module")
def done(demos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("done") / "run"
    assert train(data=demos, output=folder, steps=0) == 0
    return folder


def refused(capsys, **options) -> str:
    """The one error line; nothing may have been written."""
    output = Path(options["output"])
    existed = output.exists()
    assert train(**options) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1
    assert output.exists() == existed or not (output / "config.json").exists()
    return lines[0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"env": "ToyReech-v0"}, 'unknown environment "ToyReech-v0". Did you mean "ToyReach-v0"?'),
        ({"env": "metaworld/pick-plaice-v3"}, "unknown metaworld task"),
        ({"env": "ToyChoice-v0"}, "a continuous vector is needed"),
        ({"data": "absent.hdf5"}, "absent.hdf5"),
        ({"base": "absent"}, "there is no folder absent"),
        ({"base": "nobody:Policy"}, "nobody"),
        ({"base": "black_boxes:Aim", "num_envs": 2}, "pass --num-envs 1, not 2"),
        ({"base": "black_boxes:Aim", "agent": "idql"}, "needs a base policy of our own"),
        ({"value": "absent"}, "there is no folder absent"),
        ({"obs_keys": "stat"}, 'no observation "stat". Did you mean "state"?'),
        ({"utd": -1}, "--utd must be above 0"),
        ({"videos": 1}, "only MuJoCo environments can be drawn"),
        ({"agent": "sac", "base": "absent"}, "has no base policy"),
        ({"imagined_fraction": 0.1}, "needs a --world-model"),
        ({"resume": "absent"}, "absent holds no run"),
    ],
)
def test_bad_options_are_one_line(options, named, tmp_path, capsys):
    pytest.importorskip("metaworld")
    assert named in refused(capsys, **{"output": tmp_path / "run"} | options)


def with_value(index: int, key: str, value: float) -> list[Episode]:
    """Six demonstrations, `value` at step 1 of one of them."""
    episodes = [demonstration(seed) for seed in range(6)]
    episode = episodes[index]
    if key == "actions":
        episode.actions[1, 0] = value
    else:
        episode.obs[key][1, 0] = value
    return episodes


def with_obs(change) -> list[Episode]:
    episodes = [demonstration(seed) for seed in range(6)]
    return [dataclasses.replace(e, obs=change(e.obs["state"])) for e in episodes]


@pytest.mark.parametrize(
    ("episodes", "named"),
    [
        (with_value(3, "actions", 7.0), ["episode 3", "7", "bounds"]),
        (with_value(2, "actions", np.nan), ["demo_2", "actions", "NaN"]),
        (with_value(4, "state", np.inf), ["demo_4", "state", "infinite"]),
        (with_obs(lambda state: {"position": state}), ['"position"']),
        (with_obs(lambda state: {"state": state[:, :2]}), ["shape (2,)", "(3,)"]),
    ],
)
def test_faulty_datasets_are_one_line(episodes, named, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Episode, "check", lambda *_: None)  # so that they can be written
    path = write_demonstrations(tmp_path / "demos.hdf5", episodes)
    monkeypatch.undo()
    line = refused(capsys, data=path, output=tmp_path / "run")
    assert [text for text in named if text not in line] == []


def test_data_of_another_task_is_one_line(tmp_path, capsys):
    path = write_demonstrations(tmp_path / "demos.hdf5", env="ToyOther-v0")
    assert "ToyOther-v0" in refused(capsys, data=path, output=tmp_path / "run")


def test_a_dataset_cut_off_in_the_middle(demos, tmp_path, capsys):
    path = tmp_path / "demos.hdf5"
    whole = demos.read_bytes()
    for share in (0.2, 0.6, 0.95):
        path.write_bytes(whole[: int(share * len(whole))])
        line = refused(capsys, data=path, output=tmp_path / "run")
        assert "demos.hdf5" in line


def test_parts_of_another_task_are_one_line(done, demos, tmp_path, capsys):
    options = {"env": "ToyOther-v0", "output": tmp_path / "run"}
    assert "--base was trained for ToyReach-v0" in refused(capsys, base=done, **options)
    assert "was trained for ToyReach-v0" in refused(capsys, value=done, **options)
    for flag in ("base", "value"):
        line = refused(capsys, **{flag: done}, action_chunk=3, output=tmp_path / "run")
        assert f"--{flag} was trained on chunks of H=2" in line and "--action-chunk 2" in line


def test_what_cannot_be_resumed_is_one_line(done, demos, tmp_path, capsys):
    def said(folder, **options) -> str:
        assert resume(folder, **options) == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        return line

    assert "differs from ToyReach-v0" in said(done, env="ToyOther-v0")
    assert "--batch-size 9 differs from" in said(done, batch_size=9)
    other = tmp_path / "other"
    other.mkdir()
    document = json.loads((done / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(document | {"command": "clone"}))
    assert "holds a run of `genpol clone`" in said(other)
    assert "already holds a finished run" in refused_again(done, demos, capsys)


def refused_again(done, demos, capsys) -> str:
    assert train(data=demos, output=done) == 2
    return capsys.readouterr().err


def test_data_that_changed_is_not_resumed(tmp_path, capsys):
    path = write_demonstrations(tmp_path / "demos.hdf5")
    assert train(data=path, output=tmp_path / "run", steps=0) == 0
    path.unlink()
    write_demonstrations(path, [demonstration(seed) for seed in range(1, 9)])
    assert resume(tmp_path / "run", steps=20) == 2
    assert "has changed since the run" in capsys.readouterr().err
