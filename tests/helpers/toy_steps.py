"""Single steps of toy systems, for world models."""

from __future__ import annotations

import torch

from offline.models.world_model import StateLayout, Steps

LAYOUT = StateLayout({"angle": 1, "speed": 1})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pendulum(count, *, seed=0, noise=0.0):
    """A pushed pendulum, of which rewards and termination are functions of where it gets to."""
    draws = generator(seed)
    state = torch.rand(count, 2, generator=draws) * torch.tensor([6.0, 8.0]) - torch.tensor(
        [3.0, 4.0]
    )
    act = 2 * torch.rand(count, 1, generator=draws) - 1
    speed = state[:, 1] + 0.3 * (3 * act[:, 0] - 5 * state[:, 0].sin())
    following = torch.stack([state[:, 0] + 0.3 * speed, speed], dim=1)
    spread = noise * (0.2 + state[:, :1].abs())  # the more, the farther out
    following = following + spread * torch.randn(count, 2, generator=draws)
    reward = 10 * following[:, 0].cos() + 100
    return Steps(state, act, reward, following, (following[:, 0].abs() > 2.5).float())


def first(steps, count):
    """The first ones."""
    return Steps(*(getattr(steps, name)[:count] for name in Steps.__dataclass_fields__))
