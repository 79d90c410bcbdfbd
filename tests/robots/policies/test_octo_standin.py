"""The stand-in for Octo: checkpoint layout, the adapter on it, and that it learns."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from offline.data.episodes import Episode
from offline.errors import InputError
from offline.spec import ActionSpec

for _library in ("jax", "flax", "optax", "orbax.checkpoint", "h5py"):
    pytest.importorskip(_library)

import jax

from robots.datasets.open import open_dataset
from robots.datasets.robomimic_hdf5 import write_hdf5
from robots.policies.load import load_black_box
from robots.policies.octo import wrap
from scripts.octo_data import gather
from scripts.octo_standin import OctoStandIn, train

MODEL = "model=scripts.octo_standin:OctoStandIn"
UNIT = ActionSpec.from_bounds([-1.0, -1.0], [1.0, 1.0])


def draw(policy, n, obs):
    return policy.sample(obs, n, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Two dimensions: move towards a goal at up to 1."""
    rng = np.random.default_rng(0)
    episodes = []
    for index in range(40):
        at, goal = rng.uniform(-3, 3, (2, 2))
        states, actions = [np.concatenate([at, goal])], []
        for _ in range(12):
            action = np.clip(goal - at, -1, 1)
            at = at + 0.5 * action
            states.append(np.concatenate([at, goal]))
            actions.append(action)
        episodes.append(
            Episode(
                obs={"state": np.asarray(states, np.float32)},
                actions=np.asarray(actions, np.float32),
                rewards=np.zeros(12, np.float32),
                terminated=True,
                success=bool(index % 2),
                language="go to the goal",
            )
        )
    path = tmp_path_factory.mktemp("demos") / "demos.hdf5"
    write_hdf5(path, episodes, spec=UNIT, env=None, seed=0)
    return path


@pytest.fixture(scope="module")
def folder(demos, tmp_path_factory):
    """An untrained model."""
    folder = tmp_path_factory.mktemp("standin") / "octo"
    train(demos, folder, steps=0, seed=0)
    return folder


def test_the_checkpoint_has_octos_layout(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "example_batch.msgpack", "dataset_statistics.json", "0"}
    assert (folder / "0" / "default").is_dir()
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["heads"]["action"]["kwargs"]["action_horizon"] == 4
    statistics = json.loads((folder / "dataset_statistics.json").read_text())
    assert len(statistics["action"]["mean"]) == 2 and len(statistics["proprio"]["std"]) == 4


@pytest.mark.slow
def test_it_learns_to_move_towards_the_goal(demos, tmp_path):
    folder = tmp_path / "octo"
    train(demos, folder, steps=150, seed=0)
    policy = load_black_box(f"octo:{folder}?{MODEL}", env_spec=UNIT, language="go to the goal")
    head = policy.head
    assert (head.samples, head.argmax, head.horizon) == (True, True, 4)
    states = np.random.default_rng(1).uniform(-2, 2, (20, 4)).astype(np.float32)
    obs = {"state": torch.from_numpy(states)}
    want = np.clip(states[:, 2:] - states[:, :2], -1, 1)
    raw = policy.spec.unnormalize(draw(policy, n=8, obs=obs)).numpy()
    assert raw.shape == (20, 8, 4, 2)
    assert np.abs(raw[:, :, 0] - want[:, None]).mean() < 0.35  # .75 for the mean action
    mode = policy.spec.unnormalize(policy.mode(obs, None)).numpy()
    assert np.abs(mode[:, 0] - want).mean() < 0.35
    assert (raw[:, 0] != raw[:, 1]).any()


def test_it_un_normalises_as_the_adapter_does(folder):
    model = OctoStandIn.load_pretrained(folder)
    observations = {
        "proprio": np.zeros((2, 1, 4), np.float32),
        "timestep_pad_mask": np.ones((2, 1), bool),
    }
    task = model.create_tasks(["go to the goal"] * 2)
    key = jax.random.PRNGKey(0)
    stats = model.dataset_statistics["action"]
    normal = model.sample_actions(observations, task, rng=key, sample_shape=(3,))
    theirs = model.sample_actions(
        observations, task, rng=key, sample_shape=(3,), unnormalization_statistics=stats
    )
    ours = wrap(model, env_spec=UNIT).spec.unnormalize(np.array(normal))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert normal.shape == (3, 2, 4, 2)


def test_one_that_ignores_sample_shape(folder):
    model = OctoStandIn.load_pretrained(folder)
    model.config["model"]["heads"]["action"]["kwargs"]["ignores_sample_shape"] = True
    policy = wrap(model, env_spec=UNIT)
    assert not policy.head.samples and not policy.head.deterministic
    act = draw(policy, n=3, obs={"state": torch.zeros(2, 4)})
    assert act.shape == (2, 3, 4, 2) and len(np.unique(act[0, :, 0, 0])) == 3


@pytest.mark.slow
def test_training_is_reproducible(demos, tmp_path):
    def weights(seed, name):
        model = train(demos, tmp_path / name, steps=50, seed=seed)
        return np.concatenate([np.ravel(x) for x in jax.tree_util.tree_leaves(model.params)])

    first, again, other = weights(1, "a"), weights(1, "b"), weights(2, "c")
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_successful_episodes_only(demos):
    episodes = open_dataset(demos)
    good = sum(bool(episodes[int(i)].success) for i in episodes.splits["train"])
    arrays, statistics = gather(episodes, 2, True)
    assert statistics["num_trajectories"] == good and len(arrays["act"]) == 12 * good
    assert arrays["real"][0].tolist() == [False, True] and arrays["real"][1].all()
    assert arrays["within"][11].tolist() == [True, False, False, False]


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="does not load with scripts.octo.*FileNotFound.*config"):
        load_black_box(f"octo:{tmp_path}?{MODEL}", env_spec=UNIT)


def test_no_episode_succeeded():
    episode = SimpleNamespace(success=False)

    class Failures(list):
        splits: dict = {}

    with pytest.raises(InputError, match="no episode of the dataset succeeded"):
        gather(Failures([episode]), 2, True)
