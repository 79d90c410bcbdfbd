"""A bandit with two arms in a plane of actions, of which demonstrators pull the right one half of
the time: cloning them succeeds at 50 %."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from genpol.agents.config import TrainConfig
from genpol.policies.architecture import Architecture
from genpol.policies.policy import ChunkPolicy
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.spec import ActionSpec
from offline.types import Policy

SPEC = ActionSpec.from_bounds([-1.0, -1.0], [1.0, 1.0])
SHAPES = {"state": (2,)}
ARM, SPREAD, TOLERANCE = 0.6, 0.05, 0.3
HIDDEN, ENSEMBLE = (32, 32), 4


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def states(count: int, draw: Generator) -> dict[str, Tensor]:
    return {"state": 2 * torch.rand(count, 2, generator=draw) - 1}


def won(act: Tensor) -> Tensor:
    """(..., H, A) -> (...): 1 where the action is close to the right arm."""
    return ((act - ARM).abs().amax((-1, -2)) < TOLERANCE).float()


def demonstrations(count: int, draw: Generator) -> Batch:
    """Episodes of one step: both arms, reward 1 for the right one."""
    obs = states(count, draw)
    side = (torch.rand(count, 1, 1, generator=draw) < 0.5).float() * 2 - 1
    act = (ARM * side + SPREAD * torch.randn(count, 1, 2, generator=draw)).clamp(-1, 1)
    reward = won(act)
    return Batch(obs, act, reward, obs, torch.zeros(count), reward, reward)


def transitions(count: int, draw: Generator) -> Batch:
    """Random ones that lead somewhere: half of them end the episode."""
    going = (torch.rand(count, generator=draw) < 0.5).float()
    act = 2 * torch.rand(count, 1, 2, generator=draw) - 1
    reward = torch.randn(count, generator=draw)
    nothing = torch.zeros(count)
    return Batch(
        states(count, draw), act, reward, states(count, draw), 0.9 * going, nothing, nothing
    )


def settings(**changes) -> TrainConfig:
    return TrainConfig(
        **{
            "action_chunk": 1,
            "hidden": HIDDEN,
            "value_ensemble": ENSEMBLE,
            "lr": 1e-3,
            "base_lr": 2e-3,
            "base_ema": 0.99,
            "target_rate": 0.02,
        }
        | changes
    )


def base_policy(seed: int = 0, *, kind: str = "flow", spec: ActionSpec = SPEC) -> ChunkPolicy:
    sizes = Architecture(features=32, encoder_layers=1, width=32, denoising_steps=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ChunkPolicy(kind, spec, SHAPES, architecture=sizes)


def critic(seed: int = 0) -> ValueFunction:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ValueFunction(SPEC, SHAPES, hidden=HIDDEN, ensemble=ENSEMBLE, heads="stacked")


def learn(agent, steps: int, *, draw: Generator | None = None, batches=demonstrations) -> None:
    draw = draw or generator(1)
    for _ in range(steps):
        batch = batches(64, draw)
        agent.update_critic(batch, draw)
        agent.update_policy(batch, draw)


def win_rate(policy: Policy, count: int = 1000) -> float:
    draw = generator(9)
    return float(won(policy.sample(states(count, draw), 1, draw)[:, 0]).mean())
