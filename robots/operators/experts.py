"""Operators for demonstrations: scripted experts, careful or sloppy; metaworld's are here.

Zero-mean noise makes no test of a method that improves on demonstrations: cloning averages it
away. A sloppy operator therefore also misjudges where the object is, by the same few centimetres
for a whole episode and, as a habit, always towards the same side, so that its failures teach a
wrong action. Operators of two modes misjudge it by less, with a steady hand, each towards a side of
its own: what they do is two different actions in the same state, sometimes right and often not.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from offline.errors import InputError, did_you_mean
from robots.envs.env_names import METAWORLD, OGBENCH, check_env_name, is_ogbench

# Where the object's (or handle's) x, y, z stand in metaworld's 39 numbers: now, one step ago.
OBJECT_POSITIONS = (4, 18 + 4)
OGBENCH_TASKS = re.compile("(cube|scene|puzzle)-")


@dataclass(frozen=True)
class Operator:
    """How an operator differs from the expert."""

    name: str
    """Such as "clean", "sloppy" or "mode-x+", as stored with each episode."""
    noise: float
    """Standard deviation of what is added to each action (in [-1, 1]) at every step."""
    bias_min: float = 0.0
    bias_max: float = 0.0
    """Metres by which the object is misjudged in x and y: drawn per episode between these."""
    direction: float | None = None
    """Towards which side, in radians from x; random in each episode when None."""

    def __post_init__(self) -> None:
        if not 0 <= self.noise < np.inf:
            raise InputError(f"the {self.name} operator's noise is at least 0, not {self.noise:g}")
        if not 0 <= self.bias_min <= self.bias_max < np.inf:
            raise InputError(
                f"the {self.name} operator's bias is drawn from {self.bias_min:g} to "
                f"{self.bias_max:g} m; expected 0 <= least <= most"
            )


CLEAN = Operator("clean", noise=0.05)
SLOPPY = Operator("sloppy", noise=0.2, bias_min=0.03, bias_max=0.06)
SIDES = {"x+": 0.0, "y+": np.pi / 2, "x-": np.pi, "y-": -np.pi / 2}
"""A side of the object, and its direction in radians from x."""


def modes(
    sides: Sequence[str] = ("x+", "y+"),
    noise: float = 0.05,
    bias_min: float = 0.01,
    bias_max: float = 0.035,
) -> tuple[Operator, ...]:
    """One steady operator per side, who takes the object to lie further towards that side.

    Args:
        sides: of `SIDES`; the operator of "x+" is named "mode-x+".
        noise: standard deviation added to each action.
        bias_min: metres, at least.
        bias_max: metres, at most.

    Raises:
        InputError: an unknown side, one given twice, none, or numbers out of range.
    """
    for side in sides:
        if side not in SIDES:
            raise InputError(f'unknown side "{side}".{did_you_mean(side, SIDES)}')
    if not sides or len(set(sides)) < len(sides):
        raise InputError(f"expected sides that differ, received {' '.join(sides) or 'none'}")
    return tuple(Operator(f"mode-{side}", noise, bias_min, bias_max, SIDES[side]) for side in sides)


class Hand:
    """One operator's misjudgement and unsteadiness in one episode.

    Args:
        operator: whose hand it is.
        rng: draws the bias now, and the noise at every step.
    """

    def __init__(self, operator: Operator, rng: np.random.Generator) -> None:
        self._noise, self._rng = operator.noise, rng
        size = rng.uniform(operator.bias_min, operator.bias_max)
        angle = rng.uniform(0, 2 * np.pi)  # drawn in any case: the noise after it stays the same
        angle = angle if operator.direction is None else operator.direction
        self.bias = size * np.array([np.cos(angle), np.sin(angle)])
        """(2,) metres in x and y."""

    def execute(self, action: np.ndarray) -> np.ndarray:
        """The script's action (A,) as this hand does it, float32 in [-1, 1]."""
        # Clipped first, or noise would vanish wherever the script asks for ten times full speed.
        action = np.clip(action, -1, 1)
        action = action + self._noise * self._rng.standard_normal(action.shape)
        return np.clip(action, -1, 1).astype(np.float32)


class ScriptedExpert:
    """metaworld's scripted policy of a task, as one operator has it in one episode.

    Call it with observations; it returns actions (4,) float32 in [-1, 1].

    Args:
        env_name: "metaworld/<task>-v3".
        operator: whose hand it is.
        rng: draws this episode's bias, and the noise.

    Raises:
        InputError: an environment that has no scripted expert.
    """

    def __init__(self, env_name: str, operator: Operator, rng: np.random.Generator) -> None:
        check_expert(env_name)
        from metaworld.policies import ENV_POLICY_MAP

        policies: dict[str, Any] = ENV_POLICY_MAP
        self._policy = policies[env_name.removeprefix(METAWORLD)]()
        self._hand = Hand(operator, rng)
        self.bias = self._hand.bias
        """(2,) metres in x and y."""

    def __call__(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        seen = obs["state"].astype(np.float64)  # a copy: some scripts write into it
        for start in OBJECT_POSITIONS:
            seen[start : start + 2] += self.bias
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high", at nearly every step
            action = self._policy.get_action(seen)
        return self._hand.execute(action)


def check_expert(env_name: str) -> None:
    """Check that an environment exists and has a scripted expert.

    Raises:
        InputError: if not.
    """
    check_env_name(env_name)
    id_ = env_name.removeprefix(OGBENCH)
    if not env_name.startswith(METAWORLD) and not (is_ogbench(id_) and OGBENCH_TASKS.match(id_)):
        raise InputError(
            f'"{env_name}" has no scripted expert; those of "metaworld/<task>-v3" do, and cubes, '
            "scene and puzzles of OGBench. For others, collect with a policy "
            "(robots.operators.collect.collect_with)"
        )
