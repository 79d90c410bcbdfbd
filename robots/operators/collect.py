"""Collecting episodes, one at a time: from scripted operators, or from any policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from offline.data.episodes import Episode
from offline.errors import InputError
from robots.envs.env_names import METAWORLD
from robots.envs.make import layout_seed
from robots.operators.experts import CLEAN, SLOPPY, Operator, ScriptedExpert, check_expert, modes

if TYPE_CHECKING:
    from robots.envs.simulated_env import SimulatedEnv

Act = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Observation to action (A,) in the environment's units."""


def collect(
    env: SimulatedEnv,
    episodes: int,
    sloppy_fraction: float,
    seed: int,
    *,
    clean: Operator = CLEAN,
    sloppy: Operator | None = None,
    first: int = 0,
) -> Iterator[Episode]:
    """Demonstrations of a scripted expert in the hands of two operators, careful and sloppy.

    Args:
        env: from `make_env`: metaworld, or OGBench's cubes, scene and puzzles.
        episodes: how many; those that fail are kept and say so.
        sloppy_fraction: exactly round(sloppy_fraction * episodes) are by the sloppy operator, in
            an order drawn by `seed`.
        seed: of layouts, order, bias and noise. Each episode depends on it and on its own index
            only.
        clean: the careful operator.
        sloppy: the other one; default `SLOPPY` with the habit of this seed.
        first: index of the first one that is collected; those before it are there already.

    Yields:
        Episodes with meta "operator", "bias" (x, y in metres), "seed" (`env.reset(seed=...)` has
        the same layout), "env" and "horizon". They end at success or after `env.max_steps`.

    Raises:
        InputError: an environment without expert, or numbers out of range.
    """
    check_expert(env.name)
    sloppy = dataclasses.replace(SLOPPY, direction=habit(seed)) if sloppy is None else sloppy
    order = draw_order(episodes, sloppy_fraction, seed)
    yield from _demonstrate(
        env, [sloppy if is_sloppy else clean for is_sloppy in order], seed, first
    )


def collect_modes(
    env: SimulatedEnv,
    episodes: int,
    seed: int,
    operators: Sequence[Operator] | None = None,
    *,
    first: int = 0,
) -> Iterator[Episode]:
    """Demonstrations of a scripted expert in the hands of several operators, in equal shares.

    Args:
        env: as for `collect`.
        episodes: how many; those that fail are kept and say so.
        seed: of layouts, order, bias and noise. Operators come in an order drawn by it.
        operators: default `robots.operators.experts.modes()`, two steady ones with a side each.
        first: index of the first one that is collected; those before it are there already.

    Yields:
        Episodes as from `collect`; meta "operator" is the operator's name.

    Raises:
        InputError: an environment without expert, or no episodes.
    """
    check_expert(env.name)
    operators = modes() if operators is None else operators
    order = draw_turns(episodes, len(operators), seed)
    yield from _demonstrate(env, [operators[which] for which in order], seed, first)


def _demonstrate(
    env: SimulatedEnv, operators: Sequence[Operator], seed: int, first: int
) -> Iterator[Episode]:
    """One episode by each operator named, in this order, from the `first` on."""
    from robots.operators.ogbench_expert import OgbenchExpert

    for index, operator in enumerate(operators[first:], start=first):
        rng = np.random.default_rng(layout_seed("operator", seed, index))
        expert: ScriptedExpert | OgbenchExpert
        if env.name.startswith(METAWORLD):
            expert = ScriptedExpert(env.name, operator, rng)
        else:
            expert = OgbenchExpert(env, operator, rng)
        meta = {"operator": operator.name, "bias": [float(b) for b in expert.bias]}
        yield run_episode(env, expert, layout_seed("collect", seed, index), meta)


def habit(seed: int) -> float:
    """The side, in radians, towards which the sloppy operator of this seed misjudges."""
    rng = np.random.default_rng(layout_seed("habit", seed, 0))
    return float(rng.uniform(0, 2 * np.pi))


def draw_order(episodes: int, sloppy_fraction: float, seed: int) -> np.ndarray:
    """(episodes,) bool: which are by the sloppy operator.

    Raises:
        InputError: numbers out of range.
    """
    if episodes < 1:
        raise InputError(f"collect at least 1 episode, not {episodes}")
    if not 0 <= sloppy_fraction <= 1:
        raise InputError(f"the sloppy fraction is between 0 and 1, not {sloppy_fraction:g}")
    order = np.arange(episodes) < round(sloppy_fraction * episodes)
    return np.random.default_rng(layout_seed("order", seed, 0)).permutation(order)


def draw_turns(episodes: int, operators: int, seed: int) -> np.ndarray:
    """(episodes,) int: whose turn it is; shares differ by one episode at most.

    Raises:
        InputError: no episodes.
    """
    if episodes < 1:
        raise InputError(f"collect at least 1 episode, not {episodes}")
    turns = np.arange(episodes) % operators
    return np.random.default_rng(layout_seed("order", seed, 0)).permutation(turns)


def collect_with(
    env: SimulatedEnv, act: Act, episodes: int, seed: int, *, operator: str = "policy"
) -> Iterator[Episode]:
    """Episodes of any policy, on the same layouts as `collect` with this seed.

    Args:
        env: from `make_env`.
        act: called once per step; clipped to the environment's bounds.
        episodes: how many.
        seed: of the layouts.
        operator: stored as each episode's meta "operator".
    """
    if episodes < 1:
        raise InputError(f"collect at least 1 episode, not {episodes}")
    for index in range(episodes):
        yield run_episode(env, act, layout_seed("collect", seed, index), {"operator": operator})


def run_episode(
    env: SimulatedEnv, act: Act, layout: int, meta: dict[str, Any] | None = None
) -> Episode:
    """One episode, until success, the environment's own end, or its step limit.

    The stored actions are those executed (clipped). `terminated` is True at success, as the task
    is then over, and False at the step limit. `success` is None where the environment does not
    say.
    """
    obs, _ = env.reset(seed=layout)
    seen, actions, rewards = [obs], [], []
    ended = truncated = success = False
    while not (ended or truncated):
        action = env.action_spec.clip(np.asarray(act(obs), np.float32))
        obs, reward, ended, truncated, info = env.step(action)
        seen.append(obs)
        actions.append(action)
        rewards.append(reward)
        success = success or info["success"]
        ended = ended or success
    return Episode(
        obs={key: np.stack([o[key] for o in seen]) for key in obs},
        actions=np.stack(actions),
        rewards=np.asarray(rewards, np.float32),
        terminated=ended,
        success=success if env.has_success else None,
        language=env.language,
        meta={**(meta or {}), "seed": layout, "env": env.name, "horizon": env.max_steps},
    )
