"""Runs our policies, such as a steered one, in robomimic's own rollouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from offline.errors import InputError
from offline.types import Policy, executed
from robots.policies.robomimic import import_robomimic


def as_rollout_policy(
    policy: Policy,
    *,
    generator: Generator | None = None,
    action_chunk: int | None = None,
    last_frame: bool = False,
) -> Any:
    """A policy of ours, such as a steered one, for robomimic's `run_rollout` and its scripts.

    Args:
        policy: proposes with `sample`, or with `decide` where it has one.
        generator: of the proposals; torch's global one when None.
        action_chunk: how many actions of a proposal are executed before the next; all when None.
        last_frame: the environment stacks frames (`FrameStackWrapper`), the policy takes one.

    Returns:
        A `RolloutPolicy`: called with the observation of one environment, it answers with one
        action (A,) in the environment's units, clipped to what it accepts.

    Raises:
        InputError: robomimic is not installed.
    """
    robomimic = import_robomimic()
    obs_utils = robomimic.utils.obs_utils

    base: Any = robomimic.algo.RolloutPolicy

    class Driven(base):
        def __init__(self) -> None:
            super().__init__(policy)
            self.start_episode()

        def start_episode(self) -> None:
            policy.reset()
            self.queue: list[np.ndarray] = []

        def __call__(self, ob: dict[str, Any], goal: dict[str, Any] | None = None) -> np.ndarray:
            if goal is not None:
                raise InputError("expected a rollout without goals (use_goals=False)")
            if not self.queue:
                obs = {key: self._observation(key, np.asarray(ob[key])) for key in ob}
                if hasattr(policy, "decide"):
                    act = policy.decide(obs, generator).action
                else:
                    act = policy.sample(obs, 1, generator)[:, 0]
                act = act[:, : action_chunk or policy.spec.chunk]
                policy.commit(act)
                self.queue = list(executed(policy, act)[0].numpy())
            return self.queue.pop(0)

        def _observation(self, key: str, value: np.ndarray) -> Tensor:
            """(1, ...): pixels uint8 with channels last, as outside robomimic; numbers float."""
            value = value[-1] if last_frame else value
            if (obs_utils.OBS_KEYS_TO_MODALITIES or {}).get(key) != "rgb":
                value = value.astype(np.float32)
            elif value.dtype.kind == "f":
                value = np.moveaxis(value * 255, -3, -1).round().astype(np.uint8)
            return torch.from_numpy(value)[None]

        def __repr__(self) -> str:
            return f"as_rollout_policy({policy!r})"

    return Driven()
