"""`genpol clone`: the run folder it leaves, and what it refuses."""

import csv
import json

import pytest
import torch
from toy_data import line_data

from genpol.cli import main
from genpol.policies.policy import load_policy

pytest.importorskip("h5py")
SMALL = "--steps 4 --batch-size 16 --action-chunk 2 --features 16 --width 8 --log-every 2".split()


def write(path, data):
    from robots.datasets.robomimic_hdf5 import write_hdf5

    write_hdf5(path, data, spec=data.spec, env="toy/line", env_kwargs={}, seed=0)
    return path


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "demos.hdf5", line_data(30))


def clone(data, output, *words):
    where = ["--data", str(data), "--output", str(output)]
    return main(["clone", *SMALL, *where, "--wandb", "disabled", "--device", "cpu", *words])


@pytest.mark.parametrize("kind", ["diffusion", "flow", "gaussian"])
def test_the_run_folder(kind, demos, tmp_path, capsys):
    assert clone(demos, tmp_path / "run", "--policy", kind) == 0
    assert f"{kind} policy of 27 episodes in" in capsys.readouterr().out  # 3 of 30 are held out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["train/steps"] == 4 and summary["data/episodes"] == 27
    assert {"clone/loss", "clone/valid_loss", "clone/valid_mode_error"} <= set(summary)
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    document = json.loads((tmp_path / "run" / "config.json").read_text())
    assert document["command"] == "clone" and document["policy"] == kind

    policy = load_policy(tmp_path / "run")
    assert policy.env == "toy/line" and policy.spec.chunk == 2 and policy.kind == kind
    assert policy.meta["data"] == str(demos)
    act = policy.sample({"state": torch.zeros(1, 1)}, 3, None)
    assert act.shape == (1, 3, 2, 1) and torch.isfinite(act).all()


def test_the_same_seed_gives_the_same_files(demos, tmp_path):
    for name in ("a", "b"):
        assert clone(demos, tmp_path / name, "--seed", "3") == 0
    one, two = (tmp_path / n / "policy" / "policy.safetensors" for n in ("a", "b"))
    assert one.read_bytes() == two.read_bytes()


def test_filtered_cloning(demos, tmp_path):
    assert clone(demos, tmp_path / "run", "--filter", "success") == 0
    from robots.datasets.open import open_dataset

    data = open_dataset(str(demos))
    successes = sum(data[int(i)].success for i in data.splits["train"])
    assert load_policy(tmp_path / "run").meta["episodes"] == successes < 27


def test_images(tmp_path):
    data = write(tmp_path / "images.hdf5", line_data(6, image=True))
    assert clone(data, tmp_path / "run", "--image-keys", "camera", "--random-shift", "1") == 0
    assert load_policy(tmp_path / "run").obs_shapes == {"camera": (16, 16, 3)}


def test_bad_input_is_one_line_and_leaves_no_run(demos, tmp_path, capsys):
    failures = [e for e in line_data(40) if not e.success]
    data = line_data(1)
    data[:] = failures[:5]
    data.lengths = data.lengths[:0]
    failed = write(tmp_path / "failures.hdf5", data)
    cases = [
        (tmp_path / "absent.hdf5", [], "absent.hdf5"),
        (demos, ["--image-keys", "camera"], 'no observation "camera"'),
        (demos, ["--lr", "0"], "--lr must be above 0"),
        (demos, ["--language-model", str(tmp_path)], "no sentence encoder"),
        (failed, ["--filter", "success"], "marked as a success"),
    ]
    for path, words, expected in cases:
        assert clone(path, tmp_path / "run", *words) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and expected in error
        assert not (tmp_path / "run" / "config.json").exists()
    assert clone(demos, tmp_path / "done") == 0
    assert clone(demos, tmp_path / "done") == 2
    assert "already holds a finished run" in capsys.readouterr().err
    assert main(["clone", "--wandb", "disabled"]) == 2
    assert "--data" in capsys.readouterr().err
