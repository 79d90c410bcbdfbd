"""The work that `genpol bench expo` measures: EXPO's updates on a task made of formulas.

The task has the sizes of the published benchmark: observations of 39 numbers, actions of 4, batches
of 256, 20 critic updates for each environment step. A transition's action is one of two modes that
depend on the observation, its reward falls with the distance from a third action that no mode
reaches, so policy and critic have something to learn and candidates differ in value.

Shape legend: B batch, N base candidates, H action chunk (1), A action dimension.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from genpol.agents.config import TrainConfig
from genpol.agents.diagnostics import agreement
from genpol.agents.expo import EXPO
from genpol.agents.make import make_agent
from genpol.policies.policy import ChunkPolicy
from genpol.runs.measure import PartClock
from offline.data.batch import Batch
from offline.spec import ActionSpec

OBS, ACT = 39, 4
OFFLINE_ROWS = REPLAY_SLOTS = 10_000
CHEAPER: dict[str, dict[str, Any]] = {  # ways to draw candidates, whose choice is compared
    "bf16": {"dtype": torch.bfloat16},
    "two_step": {"steps": 2},
    "two_step_bf16": {"steps": 2, "dtype": torch.bfloat16},
}

_IMPORTED = time.perf_counter()


class ToyTask:
    """A `Source` of transitions; see the top of the file.

    Args:
        rows: how many there are, each with its key.
        device: of the batches.
        seed: of the task and of its transitions.
    """

    def __init__(self, rows: int, device: str = "cpu", seed: int = 0) -> None:
        generator = Generator().manual_seed(seed)
        mix = torch.randn(OBS, 2 * ACT, generator=generator) / math.sqrt(OBS)
        self.states = torch.randn(rows, OBS, generator=generator)
        self.following = torch.randn(rows, OBS, generator=generator)
        centre, away = (self.states @ mix).tanh().chunk(2, dim=-1)
        side = 2.0 * torch.randint(2, (rows, 1), generator=generator) - 1
        noise = 0.1 * torch.randn(rows, ACT, generator=generator)
        self.act = (0.6 * centre + 0.3 * side + noise).clamp(-1, 1)
        self.reward = -(self.act - 0.6 * centre - 0.3 - 0.3 * away).square().sum(-1)
        self.device = device

    def __len__(self) -> int:
        return len(self.states)

    def sample(self, batch_size: int, generator: Generator | None = None) -> Batch:
        """Draw uniformly with replacement."""
        rows = torch.randint(len(self), (batch_size,), generator=generator)
        reward = self.reward[rows]
        return Batch(
            obs={"state": self.states[rows]},
            act=self.act[rows, None],
            reward=reward,
            next_obs={"state": self.following[rows]},
            discount=torch.full_like(reward, 0.99),
            mc_return=reward,
            success=torch.zeros_like(reward),
            key=rows,
        ).to(self.device)


def make_bench_agent(config: TrainConfig, device: str = "cpu") -> EXPO:
    """The agent of `config` for the toy task."""
    agent = make_agent(
        config,
        spec=ActionSpec.from_bounds([-1.0] * ACT, [1.0] * ACT),
        obs_shapes={"state": (OBS,)},
        obs_stats=None,
        env="bench",
        offline_rows=OFFLINE_ROWS,
        replay_slots=REPLAY_SLOTS,
        device=device,
    )
    assert isinstance(agent, EXPO)
    return agent


class Parts(PartClock):
    """A clock of the parts of an EXPO's learning."""

    def __init__(self, agent: EXPO, device: str = "cpu") -> None:
        methods: list[tuple[Any, str, str]] = [
            (agent, "update_critic", "critic_update"),
            (agent.targets, "candidates", "candidates"),
            (agent.judge, "encode", "score"),
            (agent.judge, "score", "score"),
            (agent.judge, "second_opinion", "score"),
            (agent.critic, "update", "td"),
            (agent.base, "update", "base_update"),
            (agent.acting(), "sample", "act"),
        ]
        if agent.edit is not None:
            methods += [
                (agent.backup, "edit", "edit"),
                (agent.edit, "update", "edit_update"),
            ]
        if agent.targets.student is not None:
            methods.append((agent.targets.student, "update", "student_update"))
        super().__init__(methods, device)


def env_step(agent: EXPO, task: ToyTask, config: TrainConfig, generator: Generator) -> None:
    """What learning does for one environment step: the action, `utd` updates, one of the policy."""
    agent.acting().sample({"state": task.states[:1].to(task.device)}, 1, generator)
    for _ in range(int(config.utd)):
        batch = task.sample(config.batch_size)
        agent.update_critic(batch, generator)
    agent.update_policy(batch, generator)


def learn(
    agent: EXPO, task: ToyTask, config: TrainConfig, steps: int, generator: Generator
) -> None:
    """So many steps of imitation, of edits and of the critic.

    The critic's next value is that of the data's own actions, which costs little.
    """
    for _ in range(steps):
        batch = task.sample(config.batch_size)
        with torch.no_grad():
            value = agent.critic.target(batch.next_obs, batch.act[:, None])[..., 0].mean(0)
        agent.critic.update(batch, 0.9 * value, generator)
        agent.update_policy(batch, generator)


def agreements(
    agent: EXPO, task: ToyTask, n: int, states: int = 2048, *, low: bool = True
) -> dict[str, float]:
    """Share of states whose best of N proposals and N edits is the full chain's, for each cheaper
    way to draw the proposals, and the value that its choice loses.

    All start from the same noise, and edits move by the same noise.

    Args:
        agent: whose choices are compared.
        task: draws the states.
        n: N.
        states: how many.
        low: bfloat16 as well, which takes minutes on a processor that has none.
    """
    base = agent.base.policy
    if not isinstance(base, ChunkPolicy):
        return {}
    obs = task.sample(states).next_obs
    noise = torch.randn(states, n, ACT, generator=Generator().manual_seed(1)).to(task.device)

    def with_edits(act: Tensor) -> Tensor:
        if agent.edit is None:
            return act
        seen = agent.critic.target.encoder(obs)
        with torch.no_grad():
            edited = agent.edit.policy(seen, act, Generator().manual_seed(2))[0]
        return torch.cat([act, edited], dim=1)

    full, out = with_edits(base.decode(obs, noise)), {}
    for name, how in CHEAPER.items():
        if "dtype" in how and not low:
            continue
        cheap = with_edits(base.decode(obs, noise, **how))
        found = agreement(agent.critic.target, obs, full, cheap)
        out[f"bench/agreement_{name}"] = found["diagnose/agreement"]
        out[f"bench/regret_{name}"] = found["diagnose/regret"]
    return out


def seconds_since_start() -> float:
    """Wall-clock seconds since this process began, imports included (where the system tells)."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return float(Path("/proc/uptime").read_text().split()[0]) - started
    except (OSError, ValueError, IndexError):
        return time.perf_counter() - _IMPORTED
