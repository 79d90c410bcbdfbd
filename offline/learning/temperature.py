"""The entropy temperature of maximum-entropy RL, adjusted to keep the entropy at its target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from offline.networks.optimizers import load_optimizer


class Temperature:
    """alpha, which falls while the entropy is above its target and rises while it is below.

        J(alpha) = alpha * (entropy - target)        (SAC, arXiv 1812.05905, eq. 18)

    Adam steps on log(alpha), where the gradient is J(alpha) itself.

    Args:
        initial: alpha at first, in units of the reward.
        target_entropy: in nats.
        lr: of Adam.
    """

    def __init__(
        self,
        initial: float,
        target_entropy: float,
        lr: float,
        device: str | torch.device = "cpu",
    ) -> None:
        self.target_entropy = target_entropy
        self.log = torch.tensor(math.log(initial), device=device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.log], lr=lr)

    @property
    def value(self) -> Tensor:
        """alpha, without gradient."""
        return self.log.detach().exp()

    def update(self, entropy: Tensor) -> None:
        """One step, given the entropy () of the policy."""
        self.log.grad = self.value * (entropy.detach().to(self.log) - self.target_entropy)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """log(alpha) and the optimiser."""
        return {"log": self.log.detach().clone(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned."""
        with torch.no_grad():
            self.log.copy_(state["log"])
        load_optimizer(self.optimizer, state["optimizer"])
