"""What every critic's update is made of: the error, the target, and the target network.

Shape legend: E heads, B batch.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from offline.critics.value import ValueFunction


def td_target(reward_B: Tensor, discount_B: Tensor, next_value_B: Tensor) -> Tensor:
    """y = R + discount * v(s'): (B,), without gradient; what v is, is the method's."""
    return (reward_B + discount_B * next_value_B).detach()


def td_loss(q_EB: Tensor, target_B: Tensor) -> Tensor:
    """(Q - y)^2 / 2: (E, B); no gradient to the target."""
    return 0.5 * (q_EB - target_B.detach()) ** 2


@torch.no_grad()
def track(target: torch.nn.Module, source: torch.nn.Module, rate: float) -> None:
    """target <- target + rate * (source - target)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)


def target_of(critic: ValueFunction) -> ValueFunction:
    """The target critic: a copy that no gradient reaches, and that `follow` moves."""
    return copy.deepcopy(critic).requires_grad_(False)


def follow(target: ValueFunction, critic: ValueFunction, rate: float) -> None:
    """After a gradient step: bring the critic back within its bound, then `track` it."""
    critic.tighten()  # before the target, which stays within the bound as an average
    track(target, critic, rate)


def td_metrics(td_EB: Tensor, q_EB: Tensor, target_B: Tensor) -> dict[str, Tensor]:
    """What every critic logs: means of the TD loss, of Q at the data's actions, and of y."""
    return {
        "critic/td_loss": td_EB.detach().mean(),
        "critic/q_data": q_EB.detach().mean(),
        "critic/target": target_B.mean(),
    }
