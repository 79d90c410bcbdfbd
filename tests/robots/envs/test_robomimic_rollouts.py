"""Our policies in robomimic's own rollouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from robomimic_examples import make_checkpoint, robomimics_own

from offline.errors import InputError
from offline.spec import ActionSpec
from robots.policies.robomimic import RobomimicPolicy, import_robomimic

pytest.importorskip("robomimic")
h5py = pytest.importorskip("h5py")

# -- robomimic's rollouts


def make_toy_env(limit=6):
    """robomimic's `EnvBase`: a point to be moved to its goal, five hundredths per unit."""
    import_robomimic()
    from robomimic.envs.env_base import EnvBase

    class Toy(EnvBase):
        rollout_exceptions, action_dimension, name = (), 2, "toy"

        def __init__(self):
            self.actions = []

        def reset(self):
            self.at, self.steps = np.zeros(2), 0
            return self.get_observation()

        def step(self, action):
            self.actions.append(action)
            self.at, self.steps = self.at + 0.05 * action, self.steps + 1
            return self.get_observation(), self.get_reward(), self.is_done(), {}

        def get_observation(self):
            return {"object": self.at.copy()}

        def get_reward(self):
            return float(self.is_success()["task"])

        def is_success(self):
            return {"task": bool(np.allclose(self.at, [0.2, -0.1], atol=1e-6))}

        def is_done(self):
            return self.steps == limit

        def __getattr__(self, name):  # what a rollout does not call
            raise AttributeError(name)

    Toy.__abstractmethods__ = frozenset()
    return Toy()


class Scripted:
    """Goes to (.2, -.1) in chunks of 2; counts what is asked of it."""

    spec = ActionSpec.from_bounds([-1, -1], [1, 1], chunk=2)

    def __init__(self):
        self.asked = self.committed = self.resets = 0

    def reset(self):
        self.resets += 1

    def sample(self, obs, n, generator):
        assert obs["object"].shape == (1, 2) and obs["object"].dtype == torch.float32
        self.asked += 1
        go = (torch.tensor([0.2, -0.1]) - obs["object"]) / 0.05 / 2
        return go[:, None, None].expand(-1, n, 2, -1) * (1 if go.abs().max() < 1 else 3)

    def commit(self, act):
        assert act.shape == (1, 2, 2)
        self.committed += 1

    def keep(self, rows):
        raise AssertionError("one episode at a time")


def test_run_rollout_drives_any_policy():
    """(.2, -.1) is 4 and 2 units away; clipped to 1, the first chunk goes (2, -2) units."""
    from robots.envs.robomimic_rollouts import as_rollout_policy

    run_rollout = import_robomimic().utils.train_utils.run_rollout
    scripted, env = Scripted(), make_toy_env()
    policy = as_rollout_policy(scripted)
    results = run_rollout(policy=policy, env=env, horizon=6, terminate_on_success=True)
    np.testing.assert_allclose(env.actions[:2], [[1, -1], [1, -1]])
    assert results["Horizon"] == len(env.actions) == 4 and results["Success_Rate"] == 1
    assert scripted.asked == scripted.committed == -(-len(env.actions) // 2)
    resets = scripted.resets
    run_rollout(policy=policy, env=env, horizon=1)
    assert scripted.resets == resets + 1
    stats, _ = import_robomimic().utils.train_utils.rollout_with_stats(
        policy=policy, envs={"toy": env}, horizon=6, num_episodes=2, verbose=True
    )
    assert stats["toy"]["Success_Rate"] == results["Success_Rate"]


def test_a_checkpoint_in_both_adapters_acts_as_robomimics_own(tmp_path):
    """`as_rollout_policy` of a `RobomimicPolicy` is the policy it started from."""
    from robots.envs.robomimic_rollouts import as_rollout_policy

    path = make_checkpoint(tmp_path / "model.pth", "bc_rnn", obs={"object": 2}, ac_dim=2)
    run_rollout = import_robomimic().utils.train_utils.run_rollout
    actions = []
    for policy in (
        robomimics_own(path),
        as_rollout_policy(RobomimicPolicy.load(path, trust=True)),
    ):
        env = make_toy_env(limit=8)
        run_rollout(policy=policy, env=env, horizon=8)
        actions.append(np.stack(env.actions))
    np.testing.assert_allclose(actions[0], actions[1], atol=1e-6)


def test_goals_are_refused():
    from robots.envs.robomimic_rollouts import as_rollout_policy

    with pytest.raises(InputError, match="without goals"):
        as_rollout_policy(Scripted())({"object": np.zeros(2)}, goal={"object": np.zeros(2)})
