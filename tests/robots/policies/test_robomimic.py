"""robomimic's checkpoints through our adapter, against robomimic's own `RolloutPolicy`."""

from __future__ import annotations

import importlib.util
import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from robomimic_examples import (
    ACT,
    ALL,
    HORIZON,
    OBS,
    STOCHASTIC,
    edit_checkpoint,
    episode,
    make_checkpoint,
    own_actions,
    robomimics_own,
    seeded,
)

from offline.errors import InputError
from offline.spec import ActionSpec
from offline.types import HasMode, Policy
from robots.policies.robomimic import RobomimicPolicy, import_robomimic

pytest.importorskip("robomimic")
h5py = pytest.importorskip("h5py")


@pytest.mark.parametrize("low_noise_eval", [False, True])
@pytest.mark.parametrize("algorithm", ALL)
def test_same_actions_as_robomimics_rollout_policy(tmp_path, algorithm, low_noise_eval):
    """Over 8 steps, more than two horizons of the hidden state."""
    if algorithm == "bc_vae" and low_noise_eval:
        pytest.skip("a VAE has no low-noise decoding")
    path = make_checkpoint(tmp_path / "model.pth", algorithm, low_noise_eval=low_noise_eval)
    observations = episode(8)
    theirs = own_actions(path, observations, HORIZON if "transformer" in algorithm else 1)
    policy = RobomimicPolicy.load(path, trust=True)
    for t, obs in enumerate(observations):
        if low_noise_eval:
            act = policy.mode(obs, seeded(t))
        else:
            act = policy.sample(obs, 1, seeded(t))[:, 0]
        policy.commit(act)
        np.testing.assert_allclose(policy.spec.unnormalize(act)[0, 0], theirs[t], atol=1e-6)
    assert np.abs(np.diff(theirs, axis=0)).max() > 1e-2


def test_open_loop_rnn_sees_the_first_observation_of_each_horizon(tmp_path):
    path = make_checkpoint(tmp_path / "model.pth", "bc_rnn", open_loop=True)
    observations = episode(7)
    theirs = own_actions(path, observations)
    policy = RobomimicPolicy.load(path, trust=True)
    for obs, action in zip(observations, theirs, strict=True):
        act = policy.mode(obs, None)
        policy.commit(act)
        np.testing.assert_allclose(act[0, 0], action, atol=1e-6)


@pytest.mark.parametrize("algorithm", ALL)
def test_shapes_and_spread(tmp_path, algorithm):
    policy = RobomimicPolicy.load(make_checkpoint(tmp_path / "model.pth", algorithm), trust=True)
    assert isinstance(policy, Policy) and isinstance(policy, HasMode)
    assert policy.obs_shapes == {"gripper": (3,), "object": (2,)}
    assert policy.env == "toy/reach"
    obs = episode(1, rows=3)[0]
    assert policy.sample(obs, 1, seeded(0)).shape == (3, 1, 1, ACT)
    proposals = policy.sample(obs, 5, seeded(0))
    assert proposals.shape == (3, 5, 1, ACT)
    assert policy.mode(obs, seeded(0)).shape == (3, 1, ACT)
    assert (proposals.std(1).min() > 1e-4) == (algorithm in STOCHASTIC)


def test_proposals_have_the_spread_of_the_network_not_of_low_noise_decoding(tmp_path):
    """The checkpoint's own decoding (low_noise_eval, std 1e-4) would leave nothing to rank."""
    path = make_checkpoint(tmp_path / "model.pth", "bc_gaussian", low_noise_eval=True)
    policy, obs = RobomimicPolicy.load(path, trust=True), episode(1)[0]
    net = policy.algo.nets["policy"]
    net.low_noise_eval = False
    with torch.no_grad():
        std = net.forward_train(obs).base_dist.scale
    net.low_noise_eval = True
    proposals = policy.sample(obs, 4000, seeded(0))
    torch.testing.assert_close(proposals[:, :, 0].std(1), std, rtol=0.1, atol=0)
    assert policy.mode(obs, seeded(0)).equal(policy.mode(obs, seeded(1)))


@pytest.mark.parametrize("algorithm", ["bc_rnn_gmm", "bc_transformer_gmm"])
def test_sampling_does_not_advance_the_state(tmp_path, algorithm):
    path = make_checkpoint(tmp_path / "model.pth", algorithm)
    calm, busy = (RobomimicPolicy.load(path, trust=True) for _ in range(2))
    for t, obs in enumerate(episode(5, rows=2)):
        for _ in range(3):
            busy.sample(obs, 7, None)
        busy.mode(obs, None)
        assert busy.sample(obs, 2, seeded(t)).equal(calm.sample(obs, 2, seeded(t)))
        act = calm.sample(obs, 1, seeded(t))[:, 0]
        calm.commit(act)
        busy.commit(-act)  # which action was chosen does not matter
    calm.reset()
    assert not calm.mode(obs, seeded(0)).equal(busy.mode(obs, seeded(0)))


@pytest.mark.parametrize("algorithm", ["bc_rnn", "bc_transformer"])
def test_kept_rows_go_on_as_if_alone(tmp_path, algorithm):
    path = make_checkpoint(tmp_path / "model.pth", algorithm)
    together, alone = (RobomimicPolicy.load(path, trust=True) for _ in range(2))
    rows = torch.tensor([2, 0])
    for t, obs in enumerate(episode(5, rows=3)):
        some = {key: value[rows] for key, value in obs.items()}
        act = together.sample(obs if t < 2 else some, 1, None)[:, 0]
        theirs = alone.sample(some, 1, None)[:, 0]
        torch.testing.assert_close(act[rows] if t < 2 else act, theirs)
        together.commit(act)
        alone.commit(theirs)
        if t == 1:
            together.keep(rows)
    with pytest.raises(InputError, match="of 3 episodes, the policy remembers 2"):
        together.sample(obs, 1, None)


def test_the_wrapped_policy_is_left_as_it_was(tmp_path):
    path = make_checkpoint(tmp_path / "model.pth", "bc_rnn_gmm")
    own = robomimics_own(path)
    own.start_episode()
    own.policy.nets.train()
    own.policy.nets["policy"].nets["rnn"].eval()  # a mixture of modes, to be found again
    modes = [module.training for module in own.policy.nets.modules()]
    policy, obs = RobomimicPolicy(own), episode(1)[0]
    before = torch.get_rng_state()
    policy.commit(policy.mode(obs, seeded(0)))
    policy.sample(obs, 5, seeded(0))
    assert [module.training for module in own.policy.nets.modules()] == modes
    assert own.policy.nets["policy"].low_noise_eval is True
    assert own.policy._rnn_hidden_state is None and own.policy._rnn_counter == 0
    assert torch.get_rng_state().equal(before)


def test_generator_continues_its_stream(tmp_path):
    path = make_checkpoint(tmp_path / "model.pth", "bc_gaussian")
    policy, obs, generator = RobomimicPolicy.load(path, trust=True), episode(1)[0], seeded(0)
    first, second = (policy.sample(obs, 2, generator) for _ in range(2))
    assert not first.equal(second)
    assert first.equal(policy.sample(obs, 2, seeded(0)))


# -- units


def test_actions_reach_the_environment_in_its_units(tmp_path):
    """Scripted: the network's action, un-normalised by robomimic's statistics by hand."""
    path = make_checkpoint(tmp_path / "model.pth", "bc")
    obs = episode(1)[0]
    network = RobomimicPolicy.load(path, trust=True).mode(obs, None)[0, 0]
    stats = {
        "pose": {"offset": [[10.0, 20.0, 30.0]], "scale": [[2.0, 2.0, 4.0]]},
        "grip": {"offset": [[0.5]], "scale": [[0.5]]},
    }
    edit_checkpoint(path, lambda saved: saved.update(action_normalization_stats=stats))
    spec = ActionSpec.from_bounds([8, 18, 26, 0], [12, 22, 34, 1])
    for policy in (
        RobomimicPolicy.load(path, trust=True, env_spec=spec),
        RobomimicPolicy.load(path, trust=True),
    ):
        raw = policy.spec.unnormalize(policy.mode(obs, None))[0, 0]
        expected = network * torch.tensor([2, 2, 4, 0.5]) + torch.tensor([10, 20, 30, 0.5])
        torch.testing.assert_close(raw, expected)
        assert (policy.spec.low, policy.spec.high) == (spec.low, spec.high)


def test_bounds_of_the_environment_do_not_change_what_it_receives(tmp_path):
    path = make_checkpoint(tmp_path / "model.pth", "bc")
    obs, wide = episode(1)[0], ActionSpec.from_bounds([-4] * ACT, [2] * ACT)
    plain = RobomimicPolicy.load(path, trust=True)
    policy = RobomimicPolicy.load(path, trust=True, env_spec=wide)
    raw = plain.spec.unnormalize(plain.mode(obs, None))
    assert not plain.mode(obs, None).allclose(policy.mode(obs, None))
    torch.testing.assert_close(wide.unnormalize(policy.mode(obs, None)), raw)


def test_observations_are_normalised_by_the_checkpoints_statistics(tmp_path):
    path = make_checkpoint(tmp_path / "model.pth", "bc")
    plain, obs = RobomimicPolicy.load(path, trust=True), episode(1)[0]

    def normalise(saved):
        config = json.loads(saved["config"])
        config["train"]["hdf5_normalize_obs"] = True
        saved["config"] = json.dumps(config)
        saved["obs_normalization_stats"] = {
            key: {"mean": [[3.0] * size], "std": [[0.5] * size]} for key, size in OBS.items()
        }

    edit_checkpoint(path, normalise)
    policy = RobomimicPolicy.load(path, trust=True)
    by_hand = {key: (value - 3) * 2 for key, value in obs.items()}
    torch.testing.assert_close(policy.mode(obs, None), plain.mode(by_hand, None))
    theirs = own_actions(path, [obs])
    np.testing.assert_allclose(policy.mode(obs, None)[0], theirs, atol=1e-6)


def test_flattened_chunks_are_unflattened(tmp_path):
    """Dimension a of action h is number h * A + a; H from the caller, the spec or the sidecar."""
    path = make_checkpoint(tmp_path / "model.pth", "bc", ac_dim=3 * ACT)
    obs, spec = episode(1, rows=2)[0], ActionSpec.from_bounds([-1] * ACT, [1] * ACT)
    flat = RobomimicPolicy.load(path, trust=True)
    assert (flat.spec.dim, flat.spec.chunk) == (12, 1)
    expected = flat.mode(obs, None).reshape(2, 3, ACT)
    given = RobomimicPolicy.load(path, trust=True, action_chunk=3)
    inferred = RobomimicPolicy.load(path, trust=True, env_spec=spec)
    (tmp_path / "model.json").write_text(
        json.dumps({"action_chunk": 3, "action_spec": spec.to_dict()})
    )
    beside = RobomimicPolicy.load(path, trust=True)
    for policy in (given, inferred, beside):
        assert (policy.spec.dim, policy.spec.chunk) == (ACT, 3)
        assert policy.mode(obs, None).equal(expected)
        assert policy.sample(obs, 5, None).shape == (2, 5, 3, ACT)


def test_frames_are_stacked_only_if_as_far_apart_as_in_training(tmp_path):
    path = make_checkpoint(tmp_path / "model.pth", "bc_transformer", ac_dim=2 * ACT)
    policy = RobomimicPolicy.load(path, trust=True, action_chunk=2)
    first, second = episode(2)
    anew = policy.mode(second, None)
    for executed, remembers in ((2, True), (1, False)):
        policy.reset()
        policy.commit(policy.mode(first, None)[:, :executed])
        assert policy.mode(second, None).equal(anew) != remembers


# -- images


def make_image_checkpoint(path, backbone):
    robomimic = import_robomimic()
    config = robomimic.config.config_factory("bc")
    with config.values_unlocked():
        config.observation.modalities.obs.low_dim = ["object"]
        config.observation.modalities.obs.rgb = ["camera"]
        config.observation.encoder.rgb.core_kwargs = {
            "feature_dimension": 8,
            "backbone_class": backbone,
            "backbone_kwargs": {},
            "pool_class": None,
            "pool_kwargs": {},
        }
        config.algo.actor_layer_dims = [16]
    config.lock()
    robomimic.utils.obs_utils.initialize_obs_utils_with_config(config)
    shapes = OrderedDict(camera=[3, 32, 48], object=[2])
    algo = robomimic.algo.algo_factory(
        "bc", config, obs_key_shapes=shapes, ac_dim=ACT, device=torch.device("cpu")
    )
    meta = {"ac_dim": ACT, "all_shapes": shapes, "all_obs_keys": list(shapes), "use_images": True}
    robomimic.utils.train_utils.save_model(algo, config, None, meta, str(path))
    return path


def test_images_are_taken_as_the_environment_gives_them(tmp_path):
    """uint8 with channels last here; robomimic's environments give floats, channels first."""
    from robots.envs.robomimic_rollouts import as_rollout_policy

    path = make_image_checkpoint(tmp_path / "model.pth", "ShallowConv")
    own = robomimics_own(path)
    own.start_episode()
    policy = RobomimicPolicy.load(path, trust=True)
    assert policy.obs_shapes == {"camera": (32, 48, 3), "object": (2,)}
    rng = np.random.default_rng(0)
    camera = rng.integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
    processed = {"camera": np.moveaxis(camera[0] / 255, -1, 0), "object": np.zeros(2)}
    theirs = own(processed)
    kept = camera.copy()
    ours = policy.mode({"camera": torch.from_numpy(camera), "object": torch.zeros(1, 2)}, None)
    np.testing.assert_allclose(ours[0, 0], theirs, atol=1e-5)
    assert (camera == kept).all()
    np.testing.assert_allclose(as_rollout_policy(policy)(processed), theirs, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="it is installed")
def test_image_network_that_needs_torchvision_says_so(tmp_path):
    with pytest.raises(InputError, match="resnet18.*pip install torchvision"):
        make_image_checkpoint(tmp_path / "model.pth", "ResNet18Conv")
