"""`genpol value`: the run folder it leaves, and what it refuses."""

import csv
import json

import pytest
import torch
from toy_data import line_data

from genpol.cli import main
from genpol.commands.value.command import Value, run
from offline.critics.value import ValueFunction
from offline.errors import InputError

pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    from robots.datasets.robomimic_hdf5 import write_hdf5

    path = tmp_path_factory.mktemp("data") / "demos.hdf5"
    data = line_data(30)
    write_hdf5(path, data, spec=data.spec, env="toy/line", env_kwargs={}, seed=0)
    return path


def options(demos, output, **rest):
    small = {"steps": 4, "batch_size": 16, "action_chunk": 2, "hidden": (16, 16), "log_every": 2}
    return Value(data=str(demos), output=output, wandb="disabled", device="cpu", **small | rest)


def test_the_run_folder(demos, tmp_path):
    run(options(demos, tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["train/steps"] == 4
    assert summary["data/successes"] + summary["data/failures"] == 27  # 3 of 30 are held out
    assert {"critic/td_loss", "critic/cql_gap", "critic/q_data", "value/auc_success"} <= set(
        summary
    )
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    value = ValueFunction.load(tmp_path / "run")
    assert value.env == "toy/line" and value.spec.chunk == 2
    assert value.meta["critic"] == "calql" and value.meta["data"] == str(demos)
    q = value({"state": torch.zeros(1, 1)}, torch.zeros(1, 3, 2, 1))
    assert q.shape == (2, 1, 3) and torch.isfinite(q).all()


def test_the_command_line(demos, tmp_path, capsys):
    words = "value --critic iql --steps 2 --batch-size 8 --action-chunk 2 --hidden 8 --seed 3"
    words = [*words.split(), "--data", str(demos), "--output", str(tmp_path / "run")]
    assert main([*words, "--wandb", "disabled", "--device", "cpu"]) == 0
    assert "value function in" in capsys.readouterr().out
    meta = ValueFunction.load(tmp_path / "run").meta
    assert (meta["critic"], meta["seed"], meta["hidden"]) == ("iql", 3, [8])
    assert main([*words, "--wandb", "disabled"]) == 2
    assert "already holds a finished run" in capsys.readouterr().err


def test_bad_input_is_one_line_and_leaves_no_run(demos, tmp_path, capsys):
    cases = [
        (["--data", str(tmp_path / "absent.hdf5")], "absent.hdf5"),
        (["--data", str(demos), "--image-keys", "camera"], 'no observation "camera"'),
        (["--data", str(demos), "--discount", "1"], "--discount must be"),
        (["--data", str(demos), "--language-model", str(tmp_path)], "no sentence encoder"),
    ]
    for words, expected in cases:
        code = main(["value", *words, "--output", str(tmp_path / "run"), "--wandb", "disabled"])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert code == 2 and error.startswith("error: ") and expected in error
        assert not (tmp_path / "run" / "config.json").exists()


def test_a_dataset_without_success_is_refused(tmp_path):
    from robots.datasets.robomimic_hdf5 import write_hdf5

    data = line_data(40)
    failures = [e for e in data if not e.success]
    path = tmp_path / "failures.hdf5"
    write_hdf5(path, failures, spec=data.spec, env="toy/line", env_kwargs={}, seed=0)
    with pytest.raises(InputError, match="succeeded, so the sparse reward"):
        run(options(path, tmp_path / "run"))
