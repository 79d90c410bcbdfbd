"""OGBench's Markovian oracles, put together to solve one task from start to end.

OGBench itself uses them on random targets, one after the other, in a mode of the simulator that
has no task ("data_collection"; data_gen_scripts/generate_manipspace.py). Here a plan names the next
thing to do in the task's own environment, and the oracle for it is told that target.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from robots.envs.ogbench_simulator import OgbenchSimulator
from robots.operators.experts import Hand, Operator

if TYPE_CHECKING:
    from robots.envs.simulated_env import SimulatedEnv

CLOSE = 0.035  # metres; OGBench counts objects as placed within .04
IN_DRAWER = 0.05  # the height above which a cube's goal is the drawer (or a stack)
OPEN_DRAWER, HALF_OPEN = -0.16, -0.12
SLIDES = {"drawer": np.array([0.0, -1.0, 0.0]), "window": np.array([1.0, 0.0, 0.0])}
"""Where handles go as their joints grow."""

Step = tuple[str, Any]
"""What to move, and where to: ("cube", index), ("button", index), ("drawer", joint position) or
("window", joint position)."""


class OgbenchExpert:
    """The scripted expert of a cube, scene or puzzle task, as one operator has it in one episode.

    Call it with observations; it returns actions (5,) float32 in [-1, 1]. It looks at the
    simulator, not at the observation, which lacks the goal. The operator misjudges where cubes,
    handles and buttons are.

    Args:
        env: from `make_env`; to be reset before the first call.
        operator: whose hand it is.
        rng: draws this episode's bias, the noise, and where the arm goes between steps.
    """

    def __init__(self, env: SimulatedEnv, operator: Operator, rng: np.random.Generator) -> None:
        if not isinstance(env.simulator, OgbenchSimulator):
            raise TypeError(f"{env.name} is no OGBench environment")
        self._env: Any = env.simulator.raw.unwrapped
        self._rng = rng
        self._hand = Hand(operator, rng)
        self.bias = self._hand.bias
        """(2,) metres in x and y."""
        self._oracle: Any = None
        self._step: Step = ("", None)
        self._was_on = 0

    def __call__(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        if self._oracle is None or self._oracle.done:
            step = self._next_step()
            if step is None:
                return self._hand.execute(np.zeros(5))
            self._start(step)
        return self._hand.execute(self._oracle.select_action(None, self._seen()))

    def _start(self, step: Step) -> None:
        from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
        from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
        from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle

        oracles: dict[str, Any] = {
            "cube": CubeMarkovOracle,
            "button": ButtonMarkovOracle,
            "drawer": DrawerMarkovOracle,
            "window": WindowMarkovOracle,
        }
        what, which = step
        # Puzzles are solved with closed fingers, which press one button only.
        closed = {"gripper_always_closed": True} if not hasattr(self._env, "_num_cubes") else {}
        self._oracle = oracles[what](env=self._env, **(closed if what == "button" else {}))
        self._step = step
        if what == "button":
            self._was_on = int(self._env._cur_button_states[which])
        saved = np.random.get_state()  # where the arm goes afterwards comes from numpy's global
        np.random.seed(int(self._rng.integers(2**31)))
        self._oracle.reset(None, None)
        np.random.set_state(saved)

    def _next_step(self) -> Step | None:
        env = self._env
        if not hasattr(env, "_num_cubes"):  # a puzzle
            left = presses(
                env._cur_button_states.reshape(env._num_rows, env._num_cols),
                env._target_button_states.reshape(env._num_rows, env._num_cols),
            ).reshape(-1)
            return ("button", int(np.flatnonzero(left)[0])) if left.any() else None
        is_scene = hasattr(env, "_drawer_center")
        for cube in self._cubes_to_move():
            if is_scene and self._goal(cube)[2] > IN_DRAWER and self._slide("drawer") > HALF_OPEN:
                return self._slide_to("drawer", OPEN_DRAWER)
            return "cube", cube
        if not is_scene:
            return None
        for what, target in (
            ("drawer", env._target_drawer_pos),
            ("window", env._target_window_pos),
        ):
            if abs(self._slide(what) - target) > CLOSE:
                return self._slide_to(what, target)
        wrong = np.flatnonzero(env._cur_button_states != env._target_button_states)
        return ("button", int(wrong[0])) if len(wrong) else None

    def _slide_to(self, what: str, target: float) -> Step:
        """Slide the drawer or the window, or press the button that unlocks it."""
        button = {"drawer": 0, "window": 1}[what]
        if self._env._cur_button_states[button] == 0:
            return "button", button
        return what, target

    def _slide(self, what: str) -> float:
        return float(self._env._data.joint(f"{what}_slide").qpos[0])

    def _cubes_to_move(self) -> list[int]:
        """Cubes away from their goals, lowest goal first, so that stacks grow from below."""
        env = self._env
        away = []
        for cube in range(env._num_cubes):
            position, goal = env._data.joint(f"object_joint_{cube}").qpos[:3], self._goal(cube)
            in_drawer = hasattr(env, "_drawer_center") and goal[2] > IN_DRAWER
            if in_drawer and env._is_in_drawer(position):
                continue  # closing the drawer does the rest
            if np.linalg.norm(position - goal) > CLOSE:
                away.append(cube)
        return sorted(away, key=lambda cube: (self._goal(cube)[2], cube))

    def _goal(self, cube: int) -> np.ndarray:
        return self._env._data.mocap_pos[self._env._cube_target_mocap_ids[cube]]

    def _seen(self) -> dict[str, Any]:
        """What the oracle reads, with this step's target, and the object where it is thought."""
        env = self._env
        what, which = self._step
        info = env.compute_ob_info()
        shift = np.array([*self.bias, 0.0])
        prefix = "privileged/"
        if what == "cube":
            goal = self._goal(which).copy()
            if hasattr(env, "_drawer_center") and goal[2] > IN_DRAWER:
                goal = env._drawer_center.copy()
            info[prefix + "target_block"] = which
            info[prefix + "target_block_pos"] = goal
            info[prefix + "target_block_yaw"] = np.zeros(1)
            info[f"{prefix}block_{which}_pos"] = info[f"{prefix}block_{which}_pos"] + shift
        elif what == "button":
            info[prefix + "target_button"] = which
            info[prefix + "target_button_state"] = 1 - self._was_on
            site = env._data.site_xpos[env._button_site_ids[which]]
            info[prefix + "target_button_top_pos"] = site + shift
        elif what in ("drawer", "window"):
            handle = info[f"{prefix}{what}_handle_pos"]
            way = (which - self._slide(what)) * SLIDES[what]
            info[f"{prefix}target_{what}_handle_pos"] = handle + way
            info[f"{prefix}{what}_handle_pos"] = handle + shift
        return info


def presses(now: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The fewest presses that turn one board into another.

    A choice for the first row decides all rows below it: whatever is still wrong in a row can only
    be mended by the button underneath. So all 2^columns first rows are tried.

    Args:
        now: (rows, columns) of 0 and 1.
        goal: (rows, columns) of 0 and 1.

    Returns:
        (rows, columns) of 0 and 1; all 0 where there is nothing to do, or nothing that helps.
    """
    wrong = (np.asarray(now) != np.asarray(goal)).astype(int)
    rows, columns = wrong.shape
    best: np.ndarray | None = None
    for first in product((0, 1), repeat=columns):
        pressed = np.zeros_like(wrong)
        pressed[0] = first
        for row in range(1, rows):
            pressed[row] = toggled(wrong, pressed)[row - 1]
        if not toggled(wrong, pressed).any() and (best is None or pressed.sum() < best.sum()):
            best = pressed
    return np.zeros_like(wrong) if best is None else best


def toggled(board: np.ndarray, pressed: np.ndarray) -> np.ndarray:
    """The board after pressing those buttons."""
    p = np.pad(pressed, 1)
    flips = p[1:-1, 1:-1] + p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]
    return (board + flips) % 2
