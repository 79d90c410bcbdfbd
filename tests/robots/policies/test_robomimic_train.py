"""`scripts/robomimic_train.py`: robomimic trains, its checkpoint acts the same in both worlds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from offline.errors import InputError
from offline.spec import ActionSpec
from robots.policies.robomimic import RobomimicPolicy, import_robomimic

pytest.importorskip("robomimic")
h5py = pytest.importorskip("h5py")

from scripts.robomimic_train import ALGORITHMS, train

SPEC = ActionSpec.from_bounds([-1, -1], [1, 1], names=("x", "y"))
GOAL = "goal"  # far from zero and small in range: learnt only if normalised


def write_demos(path, *, demos=8, steps=12, chunk=1, scale=0.8, images=False):
    """Demonstrations in robomimic's format: the action is the goal's offset from 5, times 10."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "toy", "type": 2, "env_kwargs": {}})
        data.attrs["total"] = demos * steps
        data.attrs["action_spec"] = json.dumps(SPEC.to_dict())
        if chunk > 1:
            data.attrs["action_chunk"] = chunk
            data.attrs["unchunked_action_spec"] = json.dumps(SPEC.to_dict())
        for i in range(demos):
            actions = rng.uniform(-scale, scale, (steps, 2)).astype(np.float32)
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = steps
            demo.attrs["success"] = i % 3 == 0
            demo["obs/goal"] = 5 + actions / 10
            demo["obs/language"] = np.zeros((steps, 384), np.float32)
            if images:
                demo["obs/camera"] = np.zeros((steps, 8, 8, 3), np.uint8)
            demo["actions"] = np.tile(actions, (1, chunk))
        file["mask/train"] = np.array([f"demo_{i}" for i in range(demos - 1)], dtype="S")
    return path


def test_rnn_gmm_learns_and_acts_as_in_robomimic(tmp_path):
    data = write_demos(tmp_path / "demos.hdf5", images=True)
    path = tmp_path / "run" / "model.pth"
    result = train(data, path, steps=150, seed=0, filter_key="train", hidden=32, learning_rate=1e-2)
    assert result["ms_per_step"] > 0
    policy = RobomimicPolicy.load(path, trust=True)
    assert policy.env == "toy" and policy.spec == SPEC
    assert list(policy.obs_shapes) == [GOAL]  # neither the sentence nor the picture
    utils = import_robomimic().utils.file_utils
    saved = torch.load(path, weights_only=True)
    own, _ = utils.policy_from_checkpoint(device=torch.device("cpu"), ckpt_dict=saved)
    own.start_episode()
    rng, errors = np.random.default_rng(1), []
    for t in range(13):  # past the RNN's horizon of 10
        wanted = rng.uniform(-0.8, 0.8, 2).astype(np.float32)
        torch.manual_seed(t)
        theirs = own({GOAL: 5 + wanted / 10})
        act = policy.mode(
            {GOAL: torch.from_numpy(5 + wanted / 10)[None]}, torch.Generator().manual_seed(t)
        )
        policy.commit(act)
        np.testing.assert_allclose(policy.spec.unnormalize(act)[0, 0], theirs, atol=1e-5)
        errors.append(np.abs(theirs - wanted).mean())
    assert np.mean(errors) < 0.12  # .4 for an action that ignores the goal
    beside = json.loads(path.with_suffix(".json").read_text())
    assert beside["trained"]["algorithm"] == "bc_rnn_gmm" and beside["trained"]["seed"] == 0
    assert beside["trained"]["filter_key"] == "train"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_trains_and_proposes(tmp_path, algorithm):
    data = write_demos(tmp_path / "demos.hdf5", chunk=3)
    train(data, tmp_path / "model.pth", steps=2, seed=0, algorithm=algorithm, hidden=16)
    policy = RobomimicPolicy.load(tmp_path / "model.pth", trust=True)
    assert policy.spec == SPEC.with_chunk(3)
    obs = {GOAL: torch.full((4, 2), 5.0)}
    assert policy.sample(obs, 5, None).shape == (4, 5, 3, 2)
    assert torch.isfinite(policy.mode(obs, None)).all()


def test_seeds_reproduce_and_differ(tmp_path):
    data = write_demos(tmp_path / "demos.hdf5")
    weights = []
    for i, seed in enumerate((0, 0, 1)):
        path = tmp_path / f"{i}.pth"
        train(data, path, steps=3, seed=seed, algorithm="bc_gmm", hidden=16)
        weights.append(next(iter(torch.load(path, weights_only=True)["model"].values())))
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])


def test_successes_only_without_a_mask_of_them(tmp_path, monkeypatch):
    """Of 8 demonstrations 0, 3 and 6 succeed; the last is not for training. The file stays."""
    data = write_demos(tmp_path / "demos.hdf5")
    before, seen = data.read_bytes(), []
    utils = import_robomimic().utils.train_utils
    load = utils.load_data_for_training

    def spy(*args, **kwargs):
        seen.append(load(*args, **kwargs)[0].demos)
        return load(*args, **kwargs)

    monkeypatch.setattr(utils, "load_data_for_training", spy)
    output = tmp_path / "model.pth"
    train(data, output, steps=1, seed=0, algorithm="bc", filter_key="success", hidden=16)
    assert seen == [["demo_0", "demo_3", "demo_6"]]
    assert data.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"demos.hdf5", "model.pth", "model.json"}
    assert str(data) in torch.load(output, weights_only=True)["config"]


def test_mistakes_are_one_line(tmp_path):
    data, output = write_demos(tmp_path / "demos.hdf5"), tmp_path / "model.pth"
    far = write_demos(tmp_path / "far.hdf5", scale=3)
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(data.read_bytes()[:2000])
    for given, options, message in (
        (data, {"algorithm": "rnn_gmm"}, 'Did you mean "bc_rnn_gmm"'),
        (data, {"filter_key": "trian"}, 'Did you mean "train"'),
        (far, {}, r"actions in \[-1, 1\]"),
        (tmp_path / "none.hdf5", {}, "none.hdf5"),
        (cut, {}, "cut.hdf5"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            train(given, output, steps=1, seed=0, **options)
        assert "\n" not in str(caught.value)
    assert not output.exists()
