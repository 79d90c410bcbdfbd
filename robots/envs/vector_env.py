"""Several environments of one name stepped together, by gymnasium's own vector environments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from offline.errors import InputError
from robots.envs.make import make_env
from robots.envs.worker_envs import WorkerEnvs


def make_vector_env(
    env: str | Callable[[], Any],
    num_envs: int,
    *,
    max_steps: int | None = None,
    image_keys: dict[str, int] | None = None,
    asynchronous: bool = False,
    at_work: int | None = None,
    distractors: int = 0,
) -> VectorEnv:
    """`num_envs` environments without autoreset: whoever steps them decides when episodes end.

    An episode ends at success too, which gymnasium does not know of. Reset those that are over,
    and only those:

        obs, _ = envs.reset(seed=seeds)
        obs, rewards, terminated, truncated, info = envs.step(actions)  # (num_envs, A)
        over = terminated | truncated | info["success"]
        if over.any():
            obs, _ = envs.reset(seed=seeds, options={"reset_mask": over})

    `seeds` has one entry per environment; those where the mask is False are not used. Stepping an
    environment that is terminated or truncated is an AssertionError.

    Args:
        env: as for `robots.envs.make.make_env`.
        num_envs: how many.
        max_steps: as for `make_env`.
        image_keys: as for `make_env`.
        asynchronous: one process each, instead of one after the other in this one. Pays where a
            core per environment is idle. A script that asks for images too must guard its own
            start by `if __name__ == "__main__"`. The numbers are the same either way.
        at_work: of the processes, how many compute at the same time; default all.
        distractors: as for `make_env`.

    Raises:
        InputError: as `make_env`, or fewer than one environment.
    """
    if num_envs < 1:
        raise InputError(f"a vector environment has at least 1 environment, not {num_envs}")
    one = partial(
        make_env, env, max_steps=max_steps, image_keys=image_keys, distractors=distractors
    )
    if not asynchronous:
        return SyncVectorEnv([one] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    make_env(
        env, max_steps=max_steps, distractors=distractors
    ).close()  # what is wrong is said here, in one line
    return WorkerEnvs(
        [one] * num_envs,
        # OpenGL does not survive a fork of a process that has drawn.
        context="spawn" if image_keys else None,
        at_work=None if at_work is None or at_work >= num_envs else at_work,
    )
