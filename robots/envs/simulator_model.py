"""`SimulatorModel`: the simulator itself, used as a world model.

It errs nowhere, so whatever still goes wrong with imagined data is not the model's fault: short
rollouts end in states that no rollout begins in, and values bootstrapped there may be anything
(Sims et al. 2024, "The Edge-of-Reach Problem in Offline Model-Based Reinforcement Learning").

The observation must say where every joint is and how fast it moves, but for the position along
axes that the environment leaves out, on which nothing depends. Joint speeds that the environment
observes clipped, at 10 rad/s in hopper and walker, are taken as they are observed.

Shape legend: N rows, D state dimensions, A action dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from offline.data.returns import RewardKind, online_reward
from offline.errors import InputError, did_you_mean
from offline.models.world_model import Prediction, StateLayout
from offline.spec import ActionSpec
from robots.envs.make import make_env


def _place(raw: Any, position: np.ndarray, velocity: np.ndarray) -> None:
    """Put MuJoCo's joints somewhere, and forget all that went before, or results would depend on
    the order of the rows: the solver starts where it last ended."""
    import mujoco

    mujoco.mj_resetData(raw.model, raw.data)
    raw.data.qpos[:], raw.data.qvel[:] = position, velocity
    mujoco.mj_kinematics(raw.model, raw.data)  # bodies, which some rewards compare before and after


def _joints(left_out: int, raw: Any, state: np.ndarray) -> None:
    """qpos but for its first numbers, then qvel, then what follows from these."""
    joints, speeds = raw.model.nq - left_out, raw.model.nv
    position = np.concatenate([np.zeros(left_out), state[:joints]])
    _place(raw, position, state[joints : joints + speeds])


def _two_poles(raw: Any, state: np.ndarray) -> None:
    angles = np.arctan2(state[1:3], state[3:5])
    _place(raw, np.concatenate([state[:1], angles]), state[5:8])


def _reacher(raw: Any, state: np.ndarray) -> None:
    angles = np.arctan2(state[2:4], state[:2])
    _place(raw, np.concatenate([angles, state[4:6]]), np.concatenate([state[6:8], np.zeros(2)]))


def _pendulum(raw: Any, state: np.ndarray) -> None:
    raw.state = np.array([np.arctan2(state[1], state[0]), state[2]])


Place = Callable[[Any, np.ndarray], None]
_BOTH_VERSIONS: dict[str, Place] = {
    "Ant": partial(_joints, 2),
    "HalfCheetah": partial(_joints, 1),
    "Hopper": partial(_joints, 1),
    "Humanoid": partial(_joints, 2),
    "InvertedDoublePendulum": _two_poles,
    "InvertedPendulum": partial(_joints, 0),
    "Reacher": _reacher,
    "Swimmer": partial(_joints, 2),
    "Walker2d": partial(_joints, 1),
}
# How an observation is put into each of gymnasium's simulators.
PLACE: dict[str, Place] = {
    f"{name}-{version}": place for name, place in _BOTH_VERSIONS.items() for version in ("v4", "v5")
} | {"Pendulum-v1": _pendulum}


class SimulatorModel:
    """Steps the true simulator from any observation, one row after the other.

    Args:
        env: its name.
        layout: of the states, which must be the environment's "state" alone.
        spec: of the actions.
        reward: as the agent learns it; see `offline.data.returns`.
        reward_scale: multiplies every reward.
        discount: gamma, which a terminal failure's sparse reward depends on.

    Raises:
        InputError: an environment that cannot be put into the state that is observed, or states
            that hold something else.
    """

    def __init__(
        self,
        env: str,
        layout: StateLayout,
        spec: ActionSpec,
        *,
        reward: RewardKind = "dataset",
        reward_scale: float = 1.0,
        discount: float | None = None,
    ) -> None:
        if env not in PLACE:
            raise InputError(
                f'"{env}" cannot be put into the state that it observes, so it cannot be its own '
                f"world model: use a learnt one.{did_you_mean(env, sorted(PLACE))}"
            )
        self.layout, self.spec = layout, spec
        self.reward, self.reward_scale, self.discount = reward, reward_scale, discount
        self._place, self._simulator = PLACE[env], make_env(env).simulator
        self._raw: Any = self._simulator.raw.unwrapped  # type: ignore[attr-defined]
        shapes = {key: space.shape for key, space in self._simulator.observation_spaces.items()}
        wanted = StateLayout.of({key: tuple(shape or ()) for key, shape in shapes.items()})
        if layout != wanted:
            raise InputError(
                f'the simulator of "{env}" goes on from {wanted.sizes} alone, the agent observes '
                f"{layout.sizes}: drop --distractors and --obs-keys, or use a learnt model"
            )

    def predict(self, state: Tensor, act: Tensor, generator: Generator | None) -> Prediction:
        """One step of (N, D) with (N, A), normalised; nothing is random."""
        raw_act = self.spec.clip(self.spec.unnormalize(act)).cpu().numpy()
        following = np.empty(tuple(state.shape), np.float32)
        rewards = np.empty(len(state), np.float32)
        terminated = np.empty(len(state), bool)
        for i, row in enumerate(state.double().cpu().numpy()):
            self._place(self._raw, row)
            obs, reward, ended, success, _ = self._simulator.step(raw_act[i])
            following[i], terminated[i] = obs["state"], ended or success
            rewards[i] = self.reward_scale * online_reward(
                self.reward, reward, success, terminated=ended, discount=self.discount
            )
        return Prediction(
            torch.from_numpy(following).to(state),
            torch.from_numpy(rewards).to(state),
            torch.from_numpy(terminated).to(state.device),
        )
