"""IDQL: a critic that asks no policy for actions, and the best of N proposals of a base policy.

Hansen-Estruch et al. (arXiv 2304.10573), algorithm 1 and section 4:

    V(s)     minimises  |tau - 1(u < 0)| u^2,  u = min_e Qbar_e(s, a) - V(s)         (IQL, eq. 5)
    Q(s, a)  minimises  (Q(s, a) - R - discount * V(s'))^2 / 2                         (IQL, eq. 6)
    base     imitates
    acts by  argmax_i min_e Qbar_e(s, a_i),  a_1..a_N ~ base(s)

so its targets need no chain. As published with one `Q` pair; here the heads, their subset for each
minimum, data and updates are those of the other agents.

Shape legend: E heads, B batch, N candidates, H action chunk, A action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Generator, Tensor

from genpol.agents.config import TrainConfig
from genpol.agents.imitation import Imitation, require_learnable
from genpol.policies.policy import ChunkPolicy
from genpol.steering.select import argmax, softmax
from genpol.steering.steered import Steered
from offline.critics.iql import expectile_loss
from offline.critics.td import Encoded, Penalty, Subset, TDCritic
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.learning.agent import AgentOfParts, Part
from offline.networks.heads import mlp


class IDQL(AgentOfParts):
    """An `offline.learning.agent.Agent`.

    Args:
        base: proposes; trained on by imitation.
        value: the critic, with stacked heads.
        config: its settings; `expectile` and `num_candidates` (N) among them.
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
        penalty: Penalty | None = None,
    ) -> None:
        require_learnable(value.spec, base)
        self.config, self.spec = config, value.spec
        self.base = Imitation.of(base, config)
        self.critic = TDCritic.of(value, config, penalty)
        device = next(value.parameters()).device
        self.state_value = mlp(value.encoder.dim, config.hidden, 1).to(device)
        self.optimizer = torch.optim.Adam(self.state_value.parameters(), lr=config.lr, fused=True)
        # Evaluation draws heads of its own, so that how often it happens changes nothing else.
        self.heads = [Generator().manual_seed(config.seed + i) for i in (2, 3)]
        learning, evaluating = (
            Subset(self.critic.target, config.subset, heads) for heads in self.heads
        )
        self.judge = learning
        select = argmax() if config.act_select == "argmax" else softmax(config.act_temperature)
        self._acting, self._evaluating = (
            Steered(self.base.average, judge, config.num_candidates, rule, check=False)
            for judge, rule in ((learning, select), (evaluating, argmax()))
        )

    # -- learning

    def update_critic(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of V, and of Q towards it.

        Returns:
            those of `TDCritic.update`; critic/expectile_loss, critic/v (mean over the batch)
        """
        encoder = self.critic.value.encoder
        with torch.no_grad():  # images are learnt through Q
            now, after = encoder(batch.obs), encoder(batch.next_obs)
            next_value = self.state_value(after).squeeze(-1)
            q = self.judge(batch.obs, batch.act[:, None])[..., 0].amin(0)
        v = self.state_value(now).squeeze(-1)
        loss = expectile_loss(q - v, self.config.expectile).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        metrics = {"critic/expectile_loss": loss.detach(), "critic/v": v.detach().mean()}
        return metrics | self.critic.update(batch, next_value, generator)

    def update_policy(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of imitation; see `Imitation.update`."""
        return self.base.update(batch, generator)

    # -- acting

    def acting(self) -> Steered[Encoded]:
        """The best of N by two or so heads, drawn afresh; or softmax, see `act_select`."""
        return self._acting

    def evaluating(self) -> Steered[Encoded]:
        """The best of N."""
        return self._evaluating

    # -- files

    def parts(self) -> Mapping[str, Part]:
        """Base policy, Q, V, the optimisers and the streams that heads are drawn from."""
        return {
            "base": self.base,
            "critic": self.critic,
            "state_value": self.state_value,
            "optimizer": self.optimizer,
            "heads": self.heads,
        }

    def save(self, folder: Path) -> None:
        """Write value/, the target critic, and policy/, the average."""
        self.critic.target.save(Path(folder) / "value")
        self.base.average.save(Path(folder) / "policy")
