"""`SimulatedEnv`: the interface of every simulator for the rest of the kit."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from offline.errors import InputError, SpecError
from robots.envs.rendering import check_size, draw
from robots.envs.simulators import Obs, Simulator, Spaces


class SimulatedEnv(gymnasium.Env):
    """A simulator with dictionary observations, a step limit, and success in `info`.

    `reset(seed=s)` fixes the whole layout by s. `info["success"]` is whether the task is
    achieved now; the caller decides whether that ends the episode. `terminated` is the
    simulator's own; `truncated` is the step limit, after which a value may be bootstrapped.
    Actions (A,) are clipped to the bounds.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}
    render_mode = "rgb_array"

    def __init__(
        self,
        name: str,
        simulator: Simulator,
        *,
        max_steps: int | None = None,
        image_keys: dict[str, int] | None = None,
        render_size: int = 256,
    ) -> None:
        self.name = name
        self.simulator = simulator
        self.action_spec = simulator.action_spec
        self.language = simulator.language
        self.has_success = simulator.has_success
        self.max_steps = simulator.max_steps if max_steps is None else max_steps
        self.image_keys = dict(image_keys or {})
        self.render_size = render_size
        self._low = np.asarray(self.action_spec.low, np.float32)
        self._high = np.asarray(self.action_spec.high, np.float32)
        self._steps: int | None = None
        for size in (render_size, *self.image_keys.values()):
            check_size(size)
        if self.image_keys:
            simulator.scene()  # refuses what cannot be drawn
        images: Spaces = {
            key: gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
            for key, size in self.image_keys.items()
        }
        taken = set(images) & set(simulator.observation_spaces)
        if taken:
            raise InputError(f'"{name}" already observes {", ".join(sorted(taken))}')
        self.observation_space = gymnasium.spaces.Dict(simulator.observation_spaces | images)
        self.action_space = gymnasium.spaces.Box(self._low, self._high, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        """A new episode, laid out by `seed`, or by the next of those that an earlier one gives."""
        super().reset(seed=seed)
        layout = int(self.np_random.integers(2**31)) if seed is None else seed
        obs = self.simulator.reset(layout)
        self._steps = 0
        return obs | self._images(), {"seed": layout, "success": False}

    def step(self, action: np.ndarray) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """One step; `action` (A,) in the environment's units."""
        if self._steps is None:
            raise RuntimeError("call reset() before step()")
        action = np.asarray(action, np.float32)
        if action.shape != self._low.shape:
            raise SpecError(
                f"{self.name} takes actions of shape {self._low.shape}, received {action.shape}"
            )
        if not np.isfinite(action).all():
            raise SpecError(f"the action for {self.name} has NaN or infinite values: {action}")
        obs, reward, terminated, success, info = self.simulator.step(
            np.clip(action, self._low, self._high)
        )
        self._steps += 1
        truncated = self._steps >= self.max_steps or bool(info.get("truncated"))
        return obs | self._images(), reward, terminated, truncated, info | {"success": success}

    def render(self) -> np.ndarray:
        """The scene now, (render_size, render_size, 3) uint8."""
        return draw(*self.simulator.scene(), self.simulator.camera, self.render_size)

    def close(self) -> None:
        self.simulator.close()

    def _images(self) -> Obs:
        if not self.image_keys:
            return {}
        drawn = {
            size: draw(*self.simulator.scene(), self.simulator.camera, size)
            for size in set(self.image_keys.values())
        }
        return {key: drawn[size] for key, size in self.image_keys.items()}
