"""robomimic checkpoints of other kinds, and those that are refused."""

from __future__ import annotations

import sys
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from robomimic_examples import edit_checkpoint, episode, make_checkpoint, seeded

from offline.errors import InputError
from offline.spec import ActionSpec
from robots.policies.robomimic import RobomimicPolicy, import_robomimic

pytest.importorskip("robomimic")
h5py = pytest.importorskip("h5py")

# -- diffusion, by duck type: the installed version may not have it


class DiffusionStandIn:
    """robomimic's later `DiffusionPolicyUNet`, as far as the adapter sees it."""

    ac_dim, device, goal_shapes = 2, torch.device("cpu"), {}
    obs_shapes = OrderedDict(object=[2])
    obs_config = SimpleNamespace(
        modalities=SimpleNamespace(obs={"low_dim": ["object"], "rgb": []}),
    )
    algo_config = SimpleNamespace(
        horizon=SimpleNamespace(observation_horizon=2, action_horizon=3, prediction_horizon=4)
    )

    def __init__(self):
        self.nets = torch.nn.ModuleDict({"policy": torch.nn.ModuleDict()})
        self.seen = []

    def _get_action_trajectory(self, obs_dict, goal_dict=None):
        assert not self.nets.training
        self.seen.append(obs_dict["object"])
        rows, frames, _ = obs_dict["object"].shape
        assert frames == 2
        return obs_dict["object"].sum(1, keepdim=True) + torch.randn(rows, 3, self.ac_dim)


def test_diffusion_samples_whole_trajectories_on_a_tiled_batch():
    algo = DiffusionStandIn()
    policy = RobomimicPolicy(SimpleNamespace(policy=algo, obs_normalization_stats=None))
    assert policy.spec.chunk == 3
    obs = {"object": torch.tensor([[0.0, 0.0], [100.0, 200.0]])}
    proposals = policy.sample(obs, 5, seeded(0))
    assert proposals.shape == (2, 5, 3, 2)
    assert len(algo.seen) == 1 and algo.seen[0].shape == (10, 2, 2)
    assert proposals[0].abs().max() < 10  # rows are not mixed up
    torch.testing.assert_close(
        proposals[1].mean((0, 1)), torch.tensor([200.0, 400.0]), atol=3, rtol=0
    )
    assert proposals.std(1).min() > 0.1
    mode = policy.mode(obs, seeded(0))
    assert mode.shape == (2, 3, 2)
    draws = policy.sample(obs, 32, seeded(0))
    assert (mode[:, None] == draws).all(-1).all(-1).sum(1).eq(1).all()  # one of the draws
    stacked = {"object": torch.randn(4, 2, 2)}  # an environment that stacks frames itself
    policy.sample(stacked, 1, None)
    assert algo.seen[-1].equal(stacked["object"])


# -- refusals


def test_untrusted_checkpoint_is_refused_unread(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"not even a pickle")
    with pytest.raises(InputError, match="can run any code.*--trust"):
        RobomimicPolicy.load(tmp_path / "model.pth", trust=False)


def test_no_code_is_run_where_it_is_not_needed(tmp_path):
    """Genuine checkpoints hold nothing but tensors, text and numbers."""
    path = make_checkpoint(tmp_path / "model.pth", "bc_rnn_gmm")
    assert torch.load(path, weights_only=True)["algo_name"] == "bc"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no file"), (b"cut off", "cut off"), ({"a": 1}, "another library")],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content, message):
    path = tmp_path / "model.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=message) as caught:
        RobomimicPolicy.load(path, trust=True)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused(tmp_path):
    path = make_checkpoint(tmp_path / "model.pth", "bc")
    with pytest.raises(InputError, match="gives 4 numbers, expected H=1 actions of A=7"):
        RobomimicPolicy.load(path, trust=True, env_spec=ActionSpec.from_bounds([-1] * 7, [1] * 7))
    with pytest.raises(InputError, match="gives 4 numbers, expected H=3"):
        RobomimicPolicy.load(path, trust=True, action_chunk=3)
    policy, obs = RobomimicPolicy.load(path, trust=True), episode(1)[0]
    with pytest.raises(InputError, match='"object", the environment gives gripper'):
        policy.sample({"gripper": obs["gripper"]}, 1, None)
    with pytest.raises(InputError, match=r'"object" of shape \(2,\), received \(9,\)'):
        policy.sample(obs | {"object": torch.zeros(1, 9)}, 1, None)


def test_checkpoint_of_another_version_is_one_line(tmp_path):
    path = make_checkpoint(tmp_path / "model.pth", "bc")
    edit_checkpoint(path, lambda saved: saved.update(algo_name="diffusion_policy"))
    with pytest.raises(InputError, match="cannot load .*diffusion_policy.*another version"):
        RobomimicPolicy.load(path, trust=True)


def test_missing_robomimic_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "robomimic", None)
    with pytest.raises(InputError, match=r'pip install "genpol\[robomimic\]"'):
        import_robomimic()


def test_the_stand_in_for_torchvision_does_not_stay():
    import_robomimic()
    torchvision = sys.modules.get("torchvision")
    assert torchvision is None or torchvision.__spec__ is not None
