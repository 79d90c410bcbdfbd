"""What every critic's update is made of: the error, the target, and the target network.

Shape legend: E heads, B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def td_loss(q_EB: Tensor, target_B: Tensor) -> Tensor:
    """(Q - y)^2 / 2: (E, B); no gradient to the target."""
    return 0.5 * (q_EB - target_B.detach()) ** 2


@torch.no_grad()
def track(target: torch.nn.Module, source: torch.nn.Module, rate: float) -> None:
    """target <- target + rate * (source - target)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)
