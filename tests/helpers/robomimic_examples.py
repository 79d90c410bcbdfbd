"""Small robomimic checkpoints, and what robomimic itself makes of them."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch

from robots.policies.robomimic import import_robomimic

OBS, ACT = {"gripper": 3, "object": 2}, 4
ALL = (
    "bc",
    "bc_gaussian",
    "bc_gmm",
    "bc_vae",
    "bc_rnn",
    "bc_rnn_gmm",
    "bc_transformer",
    "bc_transformer_gmm",
)
STOCHASTIC = ("bc_gaussian", "bc_gmm", "bc_vae", "bc_rnn_gmm", "bc_transformer_gmm")
HORIZON = 3  # of the RNN's hidden state, so that resets are met soon


def make_checkpoint(path, algorithm, *, low_noise_eval=True, ac_dim=ACT, open_loop=False, obs=None):
    """A genuine checkpoint of an untrained network, saved by robomimic."""
    robomimic = import_robomimic()
    obs = obs or OBS
    config = robomimic.config.config_factory("bc")
    with config.values_unlocked():
        config.observation.modalities.obs.low_dim = list(obs)
        config.train.frame_stack = HORIZON if "transformer" in algorithm else 1
        config.algo.actor_layer_dims = [16]
        for part in ("gaussian", "gmm", "vae", "rnn", "transformer"):
            config.algo[part].enabled = part in algorithm.split("_")
        config.algo.gaussian.low_noise_eval = config.algo.gmm.low_noise_eval = low_noise_eval
        config.algo.rnn |= {"horizon": HORIZON, "hidden_dim": 16, "open_loop": open_loop}
        config.algo.transformer |= {"context_length": HORIZON, "embed_dim": 16, "num_heads": 2}
        config.algo.transformer.num_layers = 1
    config.lock()
    robomimic.utils.obs_utils.initialize_obs_utils_with_config(config)
    shapes = OrderedDict((key, [size]) for key, size in sorted(obs.items()))
    torch.manual_seed(0)
    algo = robomimic.algo.algo_factory(
        "bc", config, obs_key_shapes=shapes, ac_dim=ac_dim, device=torch.device("cpu")
    )
    with torch.no_grad():  # so that hidden state, mixture and observation matter
        for weight in algo.nets.parameters():
            weight.mul_(2)
    robomimic.utils.train_utils.save_model(
        algo,
        config,
        {"env_name": "toy/reach", "type": 2, "env_kwargs": {}},
        {"ac_dim": ac_dim, "all_shapes": shapes, "all_obs_keys": list(obs), "use_images": False},
        str(path),
    )
    return path


def edit_checkpoint(path, change):
    saved = torch.load(path, weights_only=False)
    change(saved)
    torch.save(saved, path)


def robomimics_own(path):
    """robomimic's `RolloutPolicy` of a checkpoint."""
    utils = import_robomimic().utils.file_utils
    saved = torch.load(path, weights_only=True)
    return utils.policy_from_checkpoint(device=torch.device("cpu"), ckpt_dict=saved)[0]


def episode(steps, rows=1, seed=0):
    """Observations of `steps` steps of `rows` episodes."""
    rng = np.random.default_rng(seed)
    return [
        {key: torch.from_numpy(rng.normal(size=(rows, size))).float() for key, size in OBS.items()}
        for _ in range(steps)
    ]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def own_actions(path, observations, frames=1):
    """What robomimic's own policy does, the global seed set to t before step t."""
    own = robomimics_own(path)
    own.start_episode()
    history, actions = [observations[0]] * frames, []
    for t, obs in enumerate(observations):
        history = [*history[1:], obs]
        torch.manual_seed(t)
        if frames > 1:
            actions.append(own({key: torch.cat([o[key] for o in history]).numpy() for key in obs}))
        else:
            actions.append(own({key: value[0].numpy() for key, value in obs.items()}))
    return np.stack(actions)
