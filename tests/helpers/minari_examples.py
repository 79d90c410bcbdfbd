"""A small Minari dataset in its local storage."""

from __future__ import annotations

import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector.episode_buffer import EpisodeBuffer

POSE = spaces.Box(-100, 100, (2,), np.float32)


def create(name: str, observation: spaces.Space, action: spaces.Space, high: float = 1) -> None:
    """Two episodes, of 3 and 4 steps; the second succeeds at its second step, then goes on."""
    buffers = []
    for index, steps in enumerate((3, 4)):
        rows = np.arange(steps + 1, dtype=np.float32)
        pose = np.stack([rows, rows + 10 * index], 1)
        nested = {"pose": pose, "goal": {"cube": pose + 1}}
        buffers.append(
            EpisodeBuffer(
                id=index,
                observations=nested if isinstance(observation, spaces.Dict) else pose,
                actions=np.linspace(-high, high, steps, dtype=np.float32)[:, None],
                rewards=list(range(steps)),
                terminations=[False] * (steps - 1) + [index == 0],
                truncations=[False] * (steps - 1) + [index == 1],
                infos={"success": np.arange(steps + 1) == 2 * index + 10 * (1 - index)},
            )
        )
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=observation, action_space=action
    )
