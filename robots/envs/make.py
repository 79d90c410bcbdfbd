"""Makes environments by name: metaworld, OGBench, robosuite, a gymnasium id, or one's own."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from offline.errors import InputError
from robots.envs.env_names import (
    METAWORLD,
    OGBENCH,
    ROBOSUITE,
    check_env_name,
    is_ogbench,
    own_environment,
    own_name,
)

if TYPE_CHECKING:
    from robots.envs.simulated_env import SimulatedEnv
    from robots.envs.simulators import Simulator


def _render_without_a_screen() -> None:
    """Ask MuJoCo for EGL where there is no display; it reads this when it is first imported."""
    if sys.platform != "linux" or os.environ.get("DISPLAY") or "MUJOCO_GL" in os.environ:
        return
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        return  # asking for EGL would now break even an import that never renders
    os.environ["MUJOCO_GL"] = "egl"


_render_without_a_screen()


def make_env(
    env: str | Callable[[], Any],
    *,
    max_steps: int | None = None,
    image_keys: dict[str, int] | None = None,
    render_size: int = 256,
    distractors: int = 0,
) -> SimulatedEnv:
    """Make an environment whose observations are dictionaries and whose seed fixes the layout.

    Args:
        env: "metaworld/<task>-v3"; "ogbench/<id>" or the id alone, such as
            "ogbench/cube-single-v0" (its first task) or "ogbench/scene-singletask-task2-v0";
            "robosuite/<Task>" such as "robosuite/Lift"; or a gymnasium id such as "FetchPush-v4",
            "AdroitHandDoorSparse-v1", "FrankaKitchen-v1" or "AntMaze_UMaze-v5". One of your own
            is "module:name" of what makes it, "module:id" of what the module registers, or the
            class or function itself. It makes a `gymnasium.Env` with bounded continuous actions,
            whose `reset(seed=)` fixes the layout and whose info has "success" at every step where
            success is defined; or a `robots.envs.simulators.Simulator`.
        max_steps: episodes are truncated there; default 200 for metaworld, 400 for robosuite, the
            id's own limit otherwise, 1000 where it has none.
        image_keys: cameras to add to each observation: key -> size, such as {"image": 64} for
            (64, 64, 3) uint8.
        render_size: height and width of what `render` returns.
        distractors: numbers to add to each observation that have nothing to do with the task, as
            "distractors"; see `robots.envs.distractors`.

    Returns:
        An environment with `name`, `action_spec`, `max_steps`, `language`, `has_success`.
        "state" is (39,) float32 in metaworld, its last three numbers the goal; other
        environments keep their observation dictionary's keys (goal-conditioned ones:
        "observation", "achieved_goal", "desired_goal"), or give "state" where they have a vector.

    Raises:
        InputError: an unknown name, a library that is not installed, an environment without
            continuous actions, or distractors below 0.
    """
    if isinstance(env, str):
        check_env_name(env)
    elif not callable(env) or hasattr(env, "reset") and not isinstance(env, type):
        raise InputError(
            f"expected what makes an environment, received a {type(env).__name__}: pass the class, "
            "or a function without arguments that returns one"
        )
    if max_steps is not None and max_steps < 1:
        raise InputError(f"an episode has at least 1 step, max_steps is {max_steps}")
    from robots.envs.distractors import Distracted
    from robots.envs.simulated_env import SimulatedEnv

    name = env if isinstance(env, str) else own_name(env)
    simulator = _named(env) if isinstance(env, str) else _own(name, env)
    return SimulatedEnv(
        name,
        Distracted(name, simulator, distractors) if distractors else simulator,
        max_steps=max_steps,
        image_keys=image_keys,
        render_size=render_size,
    )


def _own(name: str, make: Callable[[], Any]) -> Simulator:
    """What `make` makes, as a simulator."""
    from robots.envs.simulators import GymnasiumSimulator

    made = make()
    if hasattr(made, "observation_spaces") and hasattr(made, "action_spec"):
        return made
    if not hasattr(made, "action_space") or not hasattr(made, "observation_space"):
        raise InputError(
            f'"{name}" made a {type(made).__name__}, expected a gymnasium.Env, or a Simulator with '
            "observation_spaces and action_spec"
        )
    return GymnasiumSimulator(name, made)


def _named(name: str) -> Simulator:
    from robots.envs.ogbench_simulator import OgbenchSimulator, single_task
    from robots.envs.robosuite_simulator import RobosuiteSimulator
    from robots.envs.simulators import GymnasiumSimulator, MetaworldSimulator

    if ":" in name:
        found = own_environment(name)
        return GymnasiumSimulator(found) if isinstance(found, str) else _own(name, found)
    if name.startswith(METAWORLD):
        return MetaworldSimulator(name.removeprefix(METAWORLD))
    if name.startswith(ROBOSUITE):
        return RobosuiteSimulator(name.removeprefix(ROBOSUITE))
    if is_ogbench(id_ := name.removeprefix(OGBENCH)):
        return OgbenchSimulator(single_task(id_))
    return GymnasiumSimulator(name)


def layout_seed(purpose: str, seed: int, index: int) -> int:
    """The seed (31 bits) of an episode's layout, for `env.reset(seed=...)`.

    Args:
        purpose: "collect" or "evaluate": what was trained on is not evaluated on.
        seed: of the whole collection or evaluation.
        index: of the episode in it.
    """
    digest = hashlib.sha256(f"{purpose}/{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF
