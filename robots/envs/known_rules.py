"""Rewards and terminations that gymnasium's environments compute from what they observe.

A world model may be given these instead of learning them (`--known reward termination`). Rules are
torch functions of flat states and actions in the environment's units; they are those of the
released code, versions v4 and v5, with its default settings.

The reward of hopper, walker, cheetah, ant and swimmer is the distance moved in the step, which no
single observation holds, so it can only be learnt.

Shape legend: N rows, S environment's state dimensions, D model's state dimensions, A action
dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from offline.errors import InputError, did_you_mean
from offline.models.world_model import StateLayout
from offline.spec import ActionSpec

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
"""state (N, S), act (N, A), next_state (N, S) -> (N,)."""


def _never(state: Tensor, act: Tensor, following: Tensor) -> Tensor:
    return torch.zeros(len(following), dtype=torch.bool, device=following.device)


def _pole_fell(state: Tensor, act: Tensor, following: Tensor) -> Tensor:
    return following[:, 1].abs() > 0.2


def _tip(state: Tensor) -> tuple[Tensor, Tensor]:
    """x and height of the end of two poles of .6 m; the second's angle is relative."""
    x, sin, cos = state[:, 0], state[:, 1:3], state[:, 3:5]
    sin_sum = sin[:, 0] * cos[:, 1] + cos[:, 0] * sin[:, 1]
    cos_sum = cos[:, 0] * cos[:, 1] - sin[:, 0] * sin[:, 1]
    return x + 0.6 * (sin[:, 0] + sin_sum), 0.6 * (cos[:, 0] + cos_sum)


def _two_poles_fell(state: Tensor, act: Tensor, following: Tensor) -> Tensor:
    return _tip(following)[1] <= 1


def _hopper_fell(state: Tensor, act: Tensor, following: Tensor) -> Tensor:
    height, angle = following[:, 0], following[:, 1]
    healthy = (following[:, 1:].abs() < 100).all(-1)
    return ~(healthy & (height > 0.7) & (angle.abs() < 0.2))


def _walker_fell(state: Tensor, act: Tensor, following: Tensor) -> Tensor:
    height, angle = following[:, 0], following[:, 1]
    return ~((height > 0.8) & (height < 2) & (angle.abs() < 1))


def _ant_fell(state: Tensor, act: Tensor, following: Tensor) -> Tensor:
    height = following[:, 0]
    return ~((height >= 0.2) & (height <= 1) & torch.isfinite(following).all(-1))


def _humanoid_fell(state: Tensor, act: Tensor, following: Tensor) -> Tensor:
    return ~((following[:, 0] > 1) & (following[:, 0] < 2))


def _pendulum_reward(state: Tensor, act: Tensor, following: Tensor) -> Tensor:
    angle = torch.atan2(state[:, 1], state[:, 0])
    return -(angle**2 + 0.1 * state[:, 2] ** 2 + 0.001 * act[:, 0] ** 2)


def _standing(state: Tensor, act: Tensor, following: Tensor) -> Tensor:
    return (~_pole_fell(state, act, following)).to(following.dtype)


def _standing_v4(state: Tensor, act: Tensor, following: Tensor) -> Tensor:
    return torch.ones_like(following[:, 0])  # the step that falls is paid, too


def _two_poles_penalty(following: Tensor) -> Tensor:
    """Of the tip's place and the poles' speeds, which are observed up to 10 rad/s."""
    x, height = _tip(following)
    speed = following[:, 6:8]
    return 0.01 * x**2 + (height - 2) ** 2 + 1e-3 * speed[:, 0] ** 2 + 5e-3 * speed[:, 1] ** 2


def _two_poles(state: Tensor, act: Tensor, following: Tensor) -> Tensor:
    standing = ~_two_poles_fell(state, act, following)
    return 10 * standing.to(following.dtype) - _two_poles_penalty(following)


def _two_poles_v4(state: Tensor, act: Tensor, following: Tensor) -> Tensor:
    return 10 - _two_poles_penalty(following)


TERMINATION: dict[str, Rule] = {
    "Ant-v4": _ant_fell,
    "Ant-v5": _ant_fell,
    "HalfCheetah-v4": _never,
    "HalfCheetah-v5": _never,
    "Hopper-v4": _hopper_fell,
    "Hopper-v5": _hopper_fell,
    "Humanoid-v4": _humanoid_fell,
    "Humanoid-v5": _humanoid_fell,
    "InvertedDoublePendulum-v4": _two_poles_fell,
    "InvertedDoublePendulum-v5": _two_poles_fell,
    "InvertedPendulum-v4": _pole_fell,
    "InvertedPendulum-v5": _pole_fell,
    "Pendulum-v1": _never,
    "Reacher-v4": _never,
    "Reacher-v5": _never,
    "Swimmer-v4": _never,
    "Swimmer-v5": _never,
    "Walker2d-v4": _walker_fell,
    "Walker2d-v5": _walker_fell,
}
REWARD: dict[str, Rule] = {
    "InvertedDoublePendulum-v4": _two_poles_v4,
    "InvertedDoublePendulum-v5": _two_poles,
    "InvertedPendulum-v4": _standing_v4,
    "InvertedPendulum-v5": _standing,
    "Pendulum-v1": _pendulum_reward,
}


@dataclass(frozen=True)
class KnownRules:
    """Of an environment, in a world model's terms: functions of its state (N, D), a normalised
    action (N, A) and the next state (N, D)."""

    reward: Rule | None
    """(N,) in the units that the agent learns in; None is to be learnt."""
    terminated: Rule | None
    """(N,) bool; None is to be learnt."""


def known_rules(
    env: str,
    known: Collection[str],
    layout: StateLayout,
    spec: ActionSpec,
    *,
    reward_scale: float = 1.0,
) -> KnownRules:
    """The rules of an environment that are asked for.

    Args:
        env: its name.
        known: any of "reward", which is the environment's own, and "termination".
        layout: of the model's states; they hold "state" as the environment gives it.
        spec: of the actions.
        reward_scale: multiplies every reward.

    Raises:
        InputError: a rule that is asked for is not known, or "state" is not in the layout.
    """
    if known and "state" not in layout.sizes:
        raise InputError(
            'known rules need the observation "state", which is not among '
            f"{', '.join(layout.sizes)}: drop --known, or choose it with --obs-keys"
        )

    def rule(name: str, rules: dict[str, Rule]) -> Rule | None:
        if name not in known:
            return None
        if env not in rules:
            raise InputError(
                f'the {name} of "{env}" is not known as a rule of what it observes: let the model '
                f"learn it, without --known {name}.{did_you_mean(env, sorted(rules))}"
            )
        chosen = rules[env]
        return lambda state, act, following: chosen(
            layout.split(state)["state"],
            spec.clip(spec.unnormalize(act)),
            layout.split(following)["state"],
        )

    reward = rule("reward", REWARD)
    return KnownRules(
        None if reward is None else lambda *step: reward_scale * reward(*step),
        rule("termination", TERMINATION),
    )
