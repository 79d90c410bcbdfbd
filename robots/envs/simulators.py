"""The simulator interface behind `SimulatedEnv`, and its two most common families."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, Protocol

import gymnasium
import numpy as np

from offline.errors import InputError
from offline.spec import ActionSpec
from robots.envs.flat_observations import Obs, Spaces, flat_observation, flat_spaces


class Simulator(Protocol):
    """What `SimulatedEnv` wraps: one family of environments. It does not count steps."""

    observation_spaces: Spaces
    action_spec: ActionSpec
    max_steps: int
    """When an episode is cut off unless the user says otherwise."""
    language: str | None
    has_success: bool
    camera: dict[str, Any]
    """Fields of MuJoCo's free camera, or `robots.envs.rendering.fixed_camera`."""

    def reset(self, seed: int) -> Obs: ...

    def step(self, action: np.ndarray) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """obs, reward, terminated, success, info."""
        ...

    def scene(self) -> tuple[Any, Any, Any]:
        """MuJoCo's model and data, and what identifies the model's file."""
        ...

    def close(self) -> None: ...


class MetaworldSimulator:
    """One metaworld task with its goal visible, the layout drawn from the seed of `reset`.

    The environment class is used directly: through gymnasium's interface the layout comes from a
    list fixed at creation, and `reset(seed=)` does nothing.
    """

    max_steps = 200  # the experts need about 80; metaworld's own limit is 500
    has_success = True
    # Upright (metaworld's own corner cameras are upside down), robot left, table in full.
    camera: dict[str, Any] = {
        "lookat": (0.0, 0.65, 0.12),
        "distance": 1.2,
        "azimuth": 150.0,
        "elevation": -35.0,
    }

    def __init__(self, task: str) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        raw: Any = ALL_V3_ENVIRONMENTS[task]()
        self.raw = raw
        raw._partially_observable = False
        # Cached while the goal was hidden, with bounds [0, 0] to which every step would clip it.
        raw.__dict__.pop("sawyer_observation_space", None)
        raw._freeze_rand_vec = False
        raw.seeded_rand_vec = True
        raw._set_task_called = True
        raw.max_path_length = 2**31  # `SimulatedEnv` counts; this one raises
        self.language: str | None = task.removesuffix("-v3").replace("-", " ")
        self.action_spec = ActionSpec.from_bounds(
            raw.action_space.low.tolist(),
            raw.action_space.high.tolist(),
            names=("dx", "dy", "dz", "gripper"),
            gripper=3,
            gripper_open=-1.0,
        )
        self.observation_spaces: Spaces = {"state": gymnasium.spaces.Box(-np.inf, np.inf, (39,))}

    def reset(self, seed: int) -> Obs:
        self.raw.seed(seed)
        state, _ = self.raw.reset()
        return {"state": state.astype(np.float32)}

    def step(self, action: np.ndarray) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        state, reward, _, _, info = self.raw.step(action)
        obs = {"state": state.astype(np.float32)}
        return obs, float(reward), False, bool(info["success"] > 0), info

    def scene(self) -> tuple[Any, Any, Any]:
        return self.raw.model, self.raw.data, self.raw.model_name

    def close(self) -> None:
        self.raw.close()


class GymnasiumSimulator:
    """Any gymnasium id with continuous actions; dictionaries keep their keys.

    Success is what `info` says under "success" (Adroit, mazes, OGBench) or "is_success" (Fetch);
    in the kitchen, that no task is left.

    Args:
        id_: as gymnasium knows it; of an environment of the user's own, its name.
        own: the user's own environment. Its time limit, and where it truncates by itself, are kept.
        options: of the constructor of what gymnasium knows.

    Raises:
        InputError: it cannot be made, its actions are no bounded vector, or its observations no
            arrays.
    """

    language: str | None = None

    def __init__(self, id_: str, own: gymnasium.Env | None = None, **options: Any) -> None:
        self._own = own is not None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "v4 is out of date": the user asked for it
                self.raw: Any = own
                if own is None:
                    self.raw = gymnasium.make(
                        id_, max_episode_steps=-1, disable_env_checker=True, **options
                    )
        except (gymnasium.error.Error, ImportError) as error:
            raise InputError(f'cannot make "{id_}": {" ".join(str(error).split())}') from error
        spec = self.raw.spec if self._own else gymnasium.spec(id_)
        self.max_steps = (spec and spec.max_episode_steps) or 1000
        actions = self.raw.action_space
        if not isinstance(actions, gymnasium.spaces.Box) or len(actions.shape) != 1:
            raise InputError(f'"{id_}" has actions {actions}; a continuous vector is needed')
        if not actions.is_bounded():
            raise InputError(f'"{id_}" has unbounded actions {actions}; bounds are needed')
        self.action_spec = ActionSpec.from_bounds(actions.low.tolist(), actions.high.tolist())
        self.observation_spaces = flat_spaces(id_, self.raw.observation_space)
        self.raw.reset(seed=0)
        info = self.raw.step(np.zeros(actions.shape, actions.dtype))[4]
        known = ("success", "is_success", "tasks_to_complete")
        self._success = next((key for key in known if key in info), None)
        self.has_success = self._success is not None
        self.camera: dict[str, Any] = {}
        with contextlib.suppress(AttributeError):
            simulation: Any = self.raw.unwrapped
            self.camera = dict(simulation.mujoco_renderer.default_cam_config or {})

    def reset(self, seed: int) -> Obs:
        return flat_observation(self.raw.reset(seed=seed)[0], self.observation_spaces)

    def step(self, action: np.ndarray) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.raw.step(action)
        success = self._success is not None and bool(info[self._success])
        if self._own:
            info = info | {"truncated": truncated}
        if self._success == "tasks_to_complete":  # the kitchen's list of what is left
            success = not success
        obs = flat_observation(obs, self.observation_spaces)
        return obs, float(reward), bool(terminated), success, info

    def scene(self) -> tuple[Any, Any, Any]:
        raw: Any = self.raw.unwrapped
        if not hasattr(raw, "model") or not hasattr(raw, "data"):
            raise InputError(f"only MuJoCo environments can be drawn, not {type(raw).__name__}")
        return raw.model, raw.data, getattr(raw, "fullpath", None) or id(raw.model)

    def close(self) -> None:
        self.raw.close()
