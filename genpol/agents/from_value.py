"""`FromValue`: a policy that is fine-tuned by a critic's value, without a simulator.

For each stored observation s a group of chunks is drawn, and the reward of a chunk is what the
critic says of it as it would be executed:

    R(s, a) = min_e Q_e(s, clip(a))

The objective is one of `diffusion/objectives`, by which image pipelines are tuned. With PRDP at
beta the policy that it tends to is

    pi(a | s)  proportional to  pi_ref(a | s) exp(R(s, a) / beta)

which is what value steering (V-GPS, arXiv 2410.13816; `genpol.steering`) draws from at temperature
beta with infinitely many candidates. So the weights learn to do in one sample what steering does
with K samples and a critic. The critic is frozen.

K candidates hold steering to log K nats from the policy, and infinitely many to nothing. `kl_cap`
scales down the rewards of a group that ask for more than it; where it acts, the policy tends to a
larger beta for that observation (`capped` in `reward_tuning.py`).

Shape legend: G observations, B chunks of each, E critic heads, H action chunk, A action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Generator, Tensor

from genpol.agents.config import TrainConfig
from genpol.agents.imitation import require_same_chunk
from genpol.agents.reward_tuning import RewardTuning
from genpol.steering.action_units import Units
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.learning.agent import AgentOfParts, Part
from offline.types import Obs, Policy


class FromValue(AgentOfParts):
    """An `offline.learning.agent.Agent` without a critic in training.

    Args:
        base: a diffusion or flow policy of our own.
        value: the critic; it stays as it is.
        config: `agent` names the objective; see `TuningConfig`.

    Raises:
        InputError: the policy cannot be tuned so.
        SpecError: the base policy has another chunk length, or actions that the critic cannot
            score.
    """

    def __init__(self, base: Policy, value: ValueFunction, config: TrainConfig) -> None:
        self.tuning = RewardTuning(base, config)
        self.base, self.config = self.tuning.base, config
        policy = self.base.average
        require_same_chunk(value.spec, policy)
        value.spec.require_scorable(policy.spec)
        self.spec = policy.spec
        self.value = value.eval().requires_grad_(False)
        self._units = Units(policy.spec, value.spec)
        said = {"objective": config.agent, "reward": "value", "beta": config.beta}
        policy.meta["tuned"] = said

    # -- learning

    def values(self, obs: Obs, act: Tensor) -> Tensor:
        """(G, B) the critic's pessimistic value of chunks (G, B, H, A), normalised by the policy's
        spec, as they would be executed."""
        act = self._units.clip(act)
        with torch.inference_mode():
            features = self.value.encode(obs)
            values = self.value.score(features, self._units.convert(act, features.device)).amin(0)
        return values.clone()

    def update_critic(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """Nothing: the critic is frozen."""
        return {}

    def update_policy(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One round: a group of chunks for each of the batch's observations, valued, and K steps.

        Returns:
            those of `RewardTuning.learn`
        """
        keys = [-1] * len(batch) if batch.key is None else batch.key.tolist()
        metrics = self.tuning.learn(batch.obs, self.values, generator, [str(key) for key in keys])
        return {name: torch.tensor(number) for name, number in metrics.items()}

    # -- acting

    def acting(self) -> Policy:
        """The average policy, which samples once."""
        return self.base.average

    def evaluating(self) -> Policy:
        """The same."""
        return self.base.average

    # -- files

    def parts(self) -> Mapping[str, Part]:
        """The policy with its reference and optimiser, and the critic."""
        return {"tuning": self.tuning, "value": self.value}

    def save(self, folder: Path) -> None:
        """Write policy/, the average, and value/, the critic as it was given."""
        self.base.average.save(Path(folder) / "policy")
        self.value.save(Path(folder) / "value")
