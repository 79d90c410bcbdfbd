"""OGBench's environments (Park et al. 2024, arXiv:2410.20092), one fixed task each."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

from robots.envs.flat_observations import Obs, flat_observation
from robots.envs.rendering import fixed_camera
from robots.envs.simulators import GymnasiumSimulator

# Said of OGBench's own action space, whenever it is looked at.
warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32")


def single_task(id_: str) -> str:
    """The id of one task: "cube-single-v0", which has five, is read as its first.

    "cube-single-singletask-v0" is OGBench's own choice among the five (the second, for cubes).
    """
    first = id_.removesuffix("-v0") + "-singletask-task1-v0"
    return first if first in gymnasium.registry else id_


class OgbenchSimulator:
    """One OGBench task, its layout fixed by the seed of `reset`.

    Success and reward are those of the state after the action; OGBench's single-task ids report
    them one step late ("pre").

    Args:
        id_: as OGBench registers it, such as "cube-single-singletask-task2-v0".

    Raises:
        InputError: as `GymnasiumSimulator`.
    """

    language: str | None = None

    def __init__(self, id_: str) -> None:
        self._random = np.random.RandomState(0)
        known = gymnasium.spec(id_).kwargs
        options: dict[str, Any] = {"success_timing": "post"} if "reward_task_id" in known else {}
        with _as_numpys_global(self._random):
            self._inner = GymnasiumSimulator(id_, **options)
        self.id = id_
        self.raw: Any = self._inner.raw
        self.action_spec = self._inner.action_spec
        self.observation_spaces = self._inner.observation_spaces
        self.max_steps = self._inner.max_steps
        self.has_success = self._inner.has_success
        self.is_arm = hasattr(self.raw.unwrapped, "compute_ob_info")
        """Whether it is the manipulation suite: cubes, scene, puzzles."""
        self.camera = self._inner.camera
        if self.is_arm:
            self.camera = fixed_camera(self.raw.unwrapped.model.camera("front").id)

    def reset(self, seed: int) -> Obs:
        self._random.seed(seed)
        # Mazes draw a few actions to let the body settle.
        self.raw.unwrapped.action_space.seed(seed)
        with _as_numpys_global(self._random):
            obs = self._inner.reset(seed)
        return self._settle() if self.is_arm else obs

    def step(self, action: np.ndarray) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        with _as_numpys_global(self._random):  # teleporting mazes draw where to
            return self._inner.step(action)

    def scene(self) -> tuple[Any, Any, Any]:
        model, data, _ = self._inner.scene()
        return model, data, self.id

    def close(self) -> None:
        self.raw.close()

    def _settle(self) -> Obs:
        """Clear what a reset leaves behind: contact forces and the solver's starting point.

        OGBench plays a few unseeded random actions during each reset (for a picture of the goal).
        """
        import mujoco

        raw = self.raw.unwrapped
        model, data = raw.model, raw.data
        keys = ("qpos", "qvel", "mocap_pos", "mocap_quat")
        kept = {key: getattr(data, key).copy() for key in keys}
        mujoco.mj_resetData(model, data)
        for key, values in kept.items():
            getattr(data, key)[:] = values
        mujoco.mj_forward(model, data)
        raw.pre_step()  # remembers this state as the one before the first action
        return flat_observation(raw.compute_observation(), self.observation_spaces)


@contextlib.contextmanager
def _as_numpys_global(random: np.random.RandomState) -> Iterator[None]:
    """Let code that draws from numpy's global generator draw from `random` instead."""
    saved = np.random.get_state()
    np.random.set_state(random.get_state())
    try:
        yield
    finally:
        random.set_state(np.random.get_state())
        np.random.set_state(saved)
