"""IQL: implicit Q-learning (arXiv 2110.06169), from the data's actions alone.

    V(s)    minimises  |tau - 1(u < 0)| u^2,  u = min_e Qbar_e(s, a) - V(s)          (eq. 5)
    Q(s, a) minimises  (Q(s, a) - R - discount * V(s'))^2 / 2                          (eq. 6)

Since Q is only ever trained at the data's actions, an argmax over a policy's proposals can pick
what it merely extrapolates; Cal-QL is the safer default for steering.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from offline.critics.td import follow, target_of, td_loss, td_metrics, td_target
from offline.critics.value import ValueFunction
from offline.critics.value_config import ValueConfig
from offline.data.batch import Batch
from offline.networks.heads import mlp
from offline.networks.optimizers import load_optimizer


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """|tau - 1(u < 0)| u^2, elementwise; tau = .5 is half the squared error."""
    weight = torch.where(difference < 0, 1 - expectile, expectile)
    return weight * difference**2


class IQL:
    """A critic, its target and a state value V.

    Args:
        value: the critic to train.
        config: its settings.
    """

    def __init__(self, value: ValueFunction, config: ValueConfig) -> None:
        self.config = config
        self.critic = value
        self.target = target_of(value)
        device = next(value.parameters()).device
        self.state_value = mlp(value.encoder.dim, config.hidden, 1).to(device)
        params = [*value.parameters(), *self.state_value.parameters()]
        self.optimizer = torch.optim.Adam(params, lr=config.lr, foreach=True)

    def update(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of Q, V and the target; returns scalars to log. Draws nothing at random."""
        features = self.critic.encoder(batch.obs)
        chunks = batch.act[:, None]
        with torch.no_grad():
            next_v = self.state_value(self.critic.encoder(batch.next_obs)).squeeze(-1)
            target_q = self.target(batch.obs, chunks)[..., 0].amin(0)
        y = td_target(batch.reward, batch.discount, next_v)
        q = self.critic.score(self.critic.heads.project(features), chunks)[..., 0]
        v = self.state_value(features.detach()).squeeze(-1)  # images are learnt through Q
        td = td_loss(q, y)
        expectile = expectile_loss(target_q - v, self.config.expectile)
        self.optimizer.zero_grad()
        (td.mean(1).sum() + expectile.mean()).backward()
        self.optimizer.step()
        follow(self.target, self.critic, self.config.target_rate)
        return td_metrics(td, q, y) | {
            "critic/expectile_loss": expectile.detach().mean(),
            "critic/v": v.detach().mean(),
        }

    def weights(self) -> list[Tensor]:
        """All that is learnt."""
        networks = (self.critic, self.target, self.state_value)
        return [param for network in networks for param in network.parameters()]

    def state_dict(self) -> dict[str, Any]:
        """Networks and optimiser."""
        return {
            "critic": self.critic.state_dict(),
            "target": self.target.state_dict(),
            "state_value": self.state_value.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned; learning goes on at the configuration's rate."""
        for part in ("critic", "target", "state_value"):
            getattr(self, part).load_state_dict(state[part])
        load_optimizer(self.optimizer, state["optimizer"], self.config.lr)
