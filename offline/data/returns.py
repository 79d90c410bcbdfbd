"""Rewards, discounts and Monte-Carlo returns of an episode, for chunks of H actions.

The sparse reward counts the steps to success:

    r_t = -1, but 0 at the step that succeeds, which is terminal.

So the value of a state is -(1 - gamma^n) / (1 - gamma) when success is n steps off (the step that
succeeds not counted), and -1 / (1 - gamma) when it never comes. That is also the return given to
every step of a failure: the episode stopped, the failing would have gone on. A failure that is
terminal (something broke) is charged all of it at its last step, or ending early would look good.

The zero-one reward is 1 at the step that succeeds, which is terminal, and 0 elsewhere: a state is
worth gamma^n with n steps to go before that one, and nothing when success never comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from offline.data.episodes import Episode
from offline.errors import InputError

RewardKind = Literal["sparse", "zero-one", "dataset", "none"]


@dataclass(frozen=True)
class StepRewards:
    """One episode's rewards, per environment step."""

    rewards: np.ndarray
    """(T,)."""
    returns: np.ndarray
    """(T,) Monte-Carlo: sum_i gamma^i r_{t+i}, failures as described above."""
    ended: bool
    """The last step is terminal: nothing follows it, so nothing is bootstrapped there."""


def step_rewards(episode: Episode, discount: float, kind: RewardKind = "sparse") -> StepRewards:
    """Rewards and Monte-Carlo returns of each step.

    Args:
        episode: T steps.
        discount: gamma per environment step, in [0, 1).
        kind: "sparse" and "zero-one" as above; "dataset" the environment's own rewards, whose
            sum stops at a time limit; "none" zeros, for those who only clone.

    Raises:
        InputError: "sparse" or "zero-one", and the episode does not say whether it succeeded.
    """
    steps = len(episode)
    ended = bool(episode.terminated or episode.success)
    if kind == "none":
        return StepRewards(np.zeros(steps, np.float32), np.zeros(steps, np.float32), ended)
    if kind == "dataset":
        rewards = episode.rewards.astype(np.float32)
        return StepRewards(rewards, discounted_sum(rewards, discount), ended)
    if episode.success is None:
        raise InputError(
            f"the dataset does not say which episodes succeeded, which the {kind} reward needs: "
            "add success labels, or use the environment's own rewards with --reward dataset"
        )
    each, last, never = _levels(kind, discount)
    rewards = np.full(steps, each, np.float32)
    if episode.success:
        rewards[-1] = last
        return StepRewards(rewards, discounted_sum(rewards, discount), True)
    if ended:
        rewards[-1] = never
    return StepRewards(rewards, np.full(steps, never, np.float32), ended)


def online_reward(
    kind: RewardKind,
    reward: float,
    success: bool,
    *,
    terminated: bool = False,
    discount: float | None = None,
) -> float:
    """The reward of one step of an environment, as `step_rewards` gives it to a dataset's.

    Args:
        kind: "sparse", "zero-one" or "dataset".
        reward: the environment's own.
        success: the step achieved the task.
        terminated: the episode truly ended with this step.
        discount: gamma, which a terminal failure's sparse reward depends on.

    Raises:
        ValueError: that reward is asked for without the discount.
    """
    if kind == "dataset":
        return float(reward)
    if terminated and not success and kind == "sparse" and discount is None:
        raise ValueError("a terminal failure's sparse reward needs the discount")
    each, last, never = _levels(kind, discount or 0.0)
    if success:
        return last
    return never if terminated else each


def _levels(kind: RewardKind, discount: float) -> tuple[float, float, float]:
    """What a step is paid, what the step that succeeds is, and what never succeeding amounts to."""
    if kind == "sparse":
        return -1.0, 0.0, -1 / (1 - discount)
    return 0.0, float(kind == "zero-one"), 0.0


def discounted_sum(rewards: np.ndarray, discount: float) -> np.ndarray:
    """G_t = r_t + gamma G_{t+1}, with G_T = 0: (T,) -> (T,)."""
    returns, following = np.empty(len(rewards), np.float64), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        following = rewards[t] + discount * following
        returns[t] = following
    return returns.astype(np.float32)


@dataclass(frozen=True)
class ChunkRewards:
    """N transitions of one episode, each of n steps, started at step 0 .. N-1."""

    rewards: np.ndarray
    """(N,) sum_{i<n} gamma^i r_{t+i}, stopping at the end."""
    discounts: np.ndarray
    """(N,) gamma^n; 0 where the episode ends within these steps."""
    returns: np.ndarray
    """(N,) Monte-Carlo."""

    def __len__(self) -> int:
        return len(self.rewards)


def chunk_rewards(
    episode: Episode,
    n_step: int,
    discount: float,
    kind: RewardKind = "sparse",
    scale: float = 1.0,
) -> ChunkRewards:
    """Every chunk of an episode that can be learnt from.

    A chunk that reaches past the end counts only where the episode truly ended (its missing
    actions change nothing any more, and repeat the last one); at a time limit it is left out.

    Args:
        episode: T steps.
        n_step: n, the steps until a target bootstraps: H, or more.
        discount: gamma per environment step.
        kind: see `step_rewards`.
        scale: multiplies rewards and returns.

    Raises:
        InputError: see `step_rewards`.
    """
    steps = step_rewards(episode, discount, kind)
    total = len(episode)
    count = total if steps.ended else max(0, total - n_step + 1)
    padded = np.concatenate([steps.rewards, np.zeros(n_step, np.float32)]).astype(np.float64)
    rewards = sum(discount**i * padded[i : i + count] for i in range(n_step))
    discounts = np.full(count, discount**n_step, np.float32)
    if steps.ended:
        discounts[max(0, total - n_step) :] = 0
    return ChunkRewards(
        np.asarray(scale * rewards, np.float32),
        discounts,
        (scale * steps.returns[:count]).astype(np.float32),
    )
