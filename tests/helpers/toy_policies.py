"""A task of one step with two right answers, for policies that have to find both."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from genpol.policies.architecture import Architecture
from genpol.policies.policy import ChunkPolicy
from offline.spec import ActionSpec

SMALL = {"features": 64, "encoder_layers": 1, "width": 32}
CHUNK, DIM = 2, 2
SPEC = ActionSpec.from_bounds([-2.0, -1.0], [2.0, 1.0], chunk=CHUNK)
SHAPES = {"state": (3,)}
SHARE = 0.7  # of the first mode


def make(kind: str, *, seed: int = 0, shapes=SHAPES, spec=SPEC, **sizes) -> ChunkPolicy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ChunkPolicy(
            kind, spec, shapes, env="toy/two-ways", architecture=Architecture(**SMALL | sizes)
        )


def states(count: int, seed: int) -> dict[str, Tensor]:
    return {"state": 2 * torch.rand(count, 3, generator=Generator().manual_seed(seed)) - 1}


def modes(obs: dict[str, Tensor]) -> Tensor:
    """(2, B, H, A): go right, or (less often) left, by an amount that depends on the state."""
    right = 0.55 + 0.25 * obs["state"][:, :1]
    left = -0.6 + 0.2 * obs["state"][:, 1:2]
    both = torch.stack([right, left])
    return both[:, :, None].expand(-1, -1, CHUNK, DIM)


def demonstrations(obs: dict[str, Tensor], generator: Generator) -> Tensor:
    right, left = modes(obs)
    rows = torch.rand(len(right), 1, 1, generator=generator) < SHARE
    noise = 0.03 * torch.randn(right.shape, generator=generator)
    return torch.where(rows, right, left) + noise


def train(policy: ChunkPolicy, steps: int, *, target=demonstrations, lr: float = 2e-3) -> None:
    generator = Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        obs = states(256, seed=step)
        loss = policy.loss(obs, target(obs, generator), generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
