"""FQL: flow Q-learning (arXiv 2502.02538).

A flow imitates; a one-step student mu(s, z) stays near what the flow makes of the same noise while
it maximises the value, so no gradient goes through a chain:

    y = R + discount * min_{e in subset} Qbar_e(s', mu(s', z'))
    student:  min E[ alpha mean_D (mu(s, z) - flow(s, z))^2 - lambda mean_e Q_e(s, mu(s, z)) ]

The student acts. As published, but for: targets take the minimum over a subset of heads (there:
the mean of two), so that critic, data and updates are those of the other agents; the student stays
near the average of the flow's weights, which is what acts in the other agents (there: the newest);
lambda = 1 / mean |Q| is the default (there: an option), so that one alpha suits every reward.

Shape legend: E heads, B batch, H action chunk, A action dimension, D = H * A.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Generator, Tensor

from genpol.agents.config import TrainConfig
from genpol.agents.imitation import Imitation, require_learnable
from genpol.policies.policy import ChunkPolicy
from genpol.policies.student import Student, distance
from offline.critics.td import Penalty, Subset, TDCritic
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.learning.agent import AgentOfParts, Part

SMALLEST_SCALE = 1e-3  # of |Q|, which may be 0 at first


class FQL(AgentOfParts):
    """An `offline.learning.agent.Agent`.

    Args:
        base: imitates, usually a flow; of a diffusion policy the student learns its DDIM.
        value: the critic, with stacked heads.
        config: its settings; `fql_alpha` among them.
        normalize_q: lambda = 1 / mean |Q| instead of 1.
        penalty: of the critic, see `offline.critics.td.TDCritic`.

    Raises:
        SpecError: the base policy has another chunk length or normalisation.
    """

    def __init__(
        self,
        base: ChunkPolicy,
        value: ValueFunction,
        config: TrainConfig,
        *,
        normalize_q: bool = True,
        penalty: Penalty | None = None,
    ) -> None:
        require_learnable(value.spec, base)
        self.config, self.spec, self.normalize_q = config, value.spec, normalize_q
        self.base = Imitation.of(base, config)
        self.critic = TDCritic.of(value, config, penalty)
        self.student = Student.of(base).train()
        self._params = list(self.student.parameters())
        self.optimizer = torch.optim.Adam(self._params, lr=config.lr, fused=True)
        self.heads = Generator().manual_seed(config.seed)
        self.judge = Subset(self.critic.target, config.subset, self.heads)

    # -- learning

    def pretrain(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of imitation, and one of the student towards the flow: cloning data."""
        return self.base.update(batch, generator) | self.distill(batch, generator)

    def distill(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of the student towards the flow alone, as where that comes trained already.

        Returns:
            actor/distill_loss
        """
        loss = self.student.distill_loss(batch.obs, self.base.average, generator).mean()
        self._step(loss)
        return {"actor/distill_loss": loss.detach()}

    def update_critic(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step towards the value of what the student would do next; see `TDCritic.update`."""
        with torch.no_grad():
            act = self.student.sample(batch.next_obs, 1, generator)
            next_value = self.judge(batch.next_obs, act)[..., 0].amin(0)
        return self.critic.update(batch, next_value, generator)

    def update_policy(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of the flow (imitation) and of the student.

        Returns:
            those of `Imitation.update`; actor/loss, actor/distill_loss, actor/q (of the student)
        """
        metrics = self.base.update(batch, generator)
        value = self.critic.value
        noise = self.student.draw_noise(len(batch), generator)
        act = self.student(batch.obs, noise)
        distill = distance(act, self.base.average.decode(batch.obs, noise)).mean()
        with torch.no_grad():
            features = value.encode(batch.obs)
        q = value.score(features, act.clamp(-1, 1)).mean(0)
        scale = q.detach().abs().mean().clamp(min=SMALLEST_SCALE) if self.normalize_q else 1.0
        loss = self.config.fql_alpha * distill - q.mean() / scale
        self._step(loss)
        return metrics | {
            "actor/loss": loss.detach(),
            "actor/distill_loss": distill.detach(),
            "actor/q": q.detach().mean(),
        }

    def _step(self, loss: Tensor) -> None:
        """One step of the student; the critic, which `loss` depends on, gets no gradient."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self._params)
        self.optimizer.step()

    # -- acting

    def acting(self) -> Student:
        """The student, which samples."""
        return self.student

    def evaluating(self) -> Student:
        """The same."""
        return self.student

    # -- files

    def parts(self) -> Mapping[str, Part]:
        """Flow, critic, student, the optimisers and the stream that heads are drawn from."""
        return {
            "base": self.base,
            "critic": self.critic,
            "student": self.student,
            "optimizer": self.optimizer,
            "heads": self.heads,
        }

    def save(self, folder: Path) -> None:
        """Write value/, the target critic; policy/, the student; flow/, what it stays near."""
        self.critic.target.save(Path(folder) / "value")
        self.student.save(Path(folder) / "policy")
        self.base.average.save(Path(folder) / "flow")
