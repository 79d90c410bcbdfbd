"""Online imitation alone: no value, no selection; what EXPO's base policy would do by itself.

It learns to imitate its own successes along with the data's, which can be much better than the
data: the arm that tells this effect from that of the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Generator, Tensor

from genpol.agents.config import TrainConfig
from genpol.agents.imitation import Imitation, require_learnable
from genpol.policies.policy import ChunkPolicy
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.learning.agent import AgentOfParts, Part
from offline.types import Policy


class BC(AgentOfParts):
    """An `offline.learning.agent.Agent` without a critic.

    Args:
        base: trained on by imitation, from the weights it has.
        value: gives the spec only.
        config: `base_lr`, `base_ema`, `base_filter`.

    Raises:
        SpecError: the base policy has another chunk length or normalisation.
    """

    def __init__(self, base: ChunkPolicy, value: ValueFunction, config: TrainConfig) -> None:
        require_learnable(value.spec, base)
        self.spec = value.spec
        self.base = Imitation.of(base, config)

    def update_critic(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def update_policy(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of imitation; see `Imitation.update`."""
        return self.base.update(batch, generator)

    def acting(self) -> Policy:
        """The average policy, which samples."""
        return self.base.average

    def evaluating(self) -> Policy:
        """The same."""
        return self.base.average

    def parts(self) -> Mapping[str, Part]:
        """The base policy."""
        return {"base": self.base}

    def save(self, folder: Path) -> None:
        """Write policy/; there is no value."""
        self.base.average.save(Path(folder) / "policy")
