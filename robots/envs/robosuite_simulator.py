"""robosuite's tasks (Zhu et al. 2020, arXiv:2009.12293), with low-dimensional observations."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import gymnasium
import numpy as np

from offline.spec import ActionSpec
from robots.envs.env_names import ROBOSUITE
from robots.envs.flat_observations import Obs, Spaces
from robots.envs.rendering import fixed_camera


class RobosuiteSimulator:
    """One robosuite task with Panda arms and its default controller, sparse rewards.

    Observations have robomimic's keys: each robot's vectors ("robot0_eef_pos", ...) and "object",
    all that is observed of the objects in one vector.
    """

    max_steps = 400  # robomimic's horizon for lift, can and square; robosuite's own is 1000
    language: str | None = None
    has_success = True

    def __init__(self, task: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            import robosuite

            self.raw: Any = robosuite.make(
                task,
                robots=["Panda", "Panda"] if task.startswith("TwoArm") else "Panda",
                has_renderer=False,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                ignore_done=True,
                hard_reset=False,  # else each reset compiles the model anew
                seed=0,
            )
        self.task = task
        low, high = self.raw.action_spec
        self.action_spec = ActionSpec.from_bounds(low.tolist(), high.tolist())
        self.observation_spaces: Spaces = {
            key: gymnasium.spaces.Box(-np.inf, np.inf, values.shape)
            for key, values in _low_dim(self.raw.reset()).items()
        }

        self.camera = fixed_camera(self.raw.sim.model.camera_name2id("agentview"))

    def reset(self, seed: int) -> Obs:
        # The generator that the samplers of positions share: a new one would reach only some.
        self.raw.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        return _low_dim(self.raw.reset())

    def step(self, action: np.ndarray) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        obs, reward, _, info = self.raw.step(action)
        return _low_dim(obs), float(reward), False, bool(self.raw._check_success()), info

    def scene(self) -> tuple[Any, Any, Any]:
        return self.raw.sim.model._model, self.raw.sim.data._data, ROBOSUITE + self.task

    def close(self) -> None:
        self.raw.close()


def _low_dim(obs: dict[str, Any]) -> Obs:
    found = {
        key: np.array(values, np.float32)
        for key, values in obs.items()
        if key.startswith("robot") and not key.endswith("-state")
    }
    return found | {"object": np.array(obs["object-state"], np.float32)}
