"""EXPO: stable reinforcement learning with expressive policies (arXiv 2507.07986).

Nothing backpropagates value gradients through the chain of an expressive policy. It keeps imitating
(all data, offline and its own), a small edit policy moves its proposals up the value, and the
"on-the-fly" policy picks the best of both,

    pi_otf(s) = argmax_a Q(s, a)  over  a_1..a_N ~ base(s)  and  a_i + beta * edit(s, a_i),

for acting and for the target alike: y = R + discount * Q(s', pi_otf(s')). Both are `Steered`.
Without edits this is best-of-N; the base may also be a frozen black box, which is then only edited
and selected from.

Shape legend: E heads, B batch, N base candidates, H action chunk, A action dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from genpol.agents.config import TrainConfig
from genpol.agents.deploy import save_edit
from genpol.agents.edit import EditLearner, Editor, EditPolicy
from genpol.agents.imitation import Imitation
from genpol.agents.target_proposals import TargetProposals
from genpol.policies.policy import ChunkPolicy
from genpol.steering.select import Select, argmax, softmax
from genpol.steering.steered import Steered
from offline.critics.td import Penalty, Subset, TDCritic
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.types import Obs, Policy


class EXPO:
    """An `offline.learning.agent.Agent`.

    Args:
        base: proposes; one of ours is trained on, anything else stays as it is.
        value: the critic, with stacked heads, for chunks of the same length.
        config: its settings; `edits` = 0 is best-of-N.
        target_base: proposes for targets where `base` cannot, because it remembers the episode
            it is in; default `base`.
        offline_rows, replay_slots: sizes of the dataset and of the replay, which a cache of
            candidates goes by; see `CandidateCache`.
        penalty: of the critic, see `offline.critics.td.TDCritic`.
    """

    def __init__(
        self,
        base: Policy,
        value: ValueFunction,
        config: TrainConfig,
        *,
        target_base: Policy | None = None,
        offline_rows: int = 0,
        replay_slots: int = 0,
        penalty: Penalty | None = None,
    ) -> None:
        self.config, self.spec = config, value.spec
        self.base = Imitation(
            base, lr=config.base_lr, ema=config.base_ema, filter=config.base_filter
        )
        self.critic = TDCritic(value, lr=config.lr, target_rate=config.target_rate, penalty=penalty)
        self.edit: EditLearner | None = None
        if config.edits:
            policy = EditPolicy(
                value.encoder.dim,
                self.spec.chunk * self.spec.dim,
                config.hidden,
                scale=config.edit_scale,
                clip=config.clip_edits,
            ).to(next(value.parameters()).device)
            self.edit = EditLearner(
                policy,
                lr=config.lr,
                init_temperature=config.init_temperature,
                target_entropy=config.target_entropy,
                entropy_of=config.edit_entropy,
                scale_lr=config.edit_scale_lr if config.adaptive_edit_scale else None,
            )
        heads = Generator().manual_seed(config.seed + 2)
        self._heads = heads
        select = argmax() if config.act_select == "argmax" else softmax(config.act_temperature)
        self.asides = target_base or self.base.average
        """Proposes for any states, whatever episode the base policy is in."""
        self._acting = self._on_the_fly(self.base.average, self._few(), select)
        # All heads: evaluating draws none, so that it leaves training as it was.
        every = Subset(self.critic.target, value.ensemble, heads)
        self._evaluating = self._on_the_fly(self.base.average, every, argmax())
        self._anywhere: dict[int, Steered] = {}
        proposer = self.base.average if config.backup_uses_average else self.base.policy
        self._judge = Subset(self.critic.target, config.subset, heads)
        self._targets = TargetProposals(
            target_base or proposer,
            config,
            screen=Subset(self.critic.target, config.subset, heads),
            # Those of a black box that never changes are drawn once.
            forever=self.base.frozen,
            rows=(offline_rows, replay_slots),
        )
        self._backup = self._on_the_fly(self._targets, self._judge, argmax(), self._targets.count)
        self._updates = 0

    def _few(self) -> Subset:
        return Subset(self.critic.target, self.config.subset, self._heads)

    def _on_the_fly(
        self, base: Policy, critic: Subset, select: Select, count: int | None = None
    ) -> Steered:
        edit = None if self.edit is None else Editor(self.edit.policy, critic, self.config.edits)
        count = self.config.num_candidates if count is None else count
        return Steered(base, critic, count, select, edit=edit, check=False)

    # -- learning

    def update_critic(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step towards the value of what the on-the-fly policy would do next."""
        self._targets.about(batch, self._updates)
        self._updates += 1
        next_value, metrics = self._next_value(batch.next_obs, generator)
        metrics |= self._targets.metrics()
        return metrics | self.critic.update(batch, next_value, generator)

    @torch.no_grad()
    def _next_value(self, obs: Obs, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """v(s') (B,), and how it came about."""
        decision = self._backup.decide(obs, generator)
        rows = torch.arange(len(decision.chosen), device=decision.chosen.device)
        chosen = decision.scores[rows, decision.chosen]
        value = chosen
        if self.config.backup != "plain":
            disjoint = self.config.backup == "decoupled"
            heads = self._judge.others(self.config.subset, disjoint=disjoint)
            value = self._judge.second_opinion(decision.action[:, None], heads)[..., 0].amin(0)
        count = self._targets.count
        best_base = decision.scores[:, :count].amax(1)
        metrics = {
            "critic/selection_gain": (chosen - decision.scores[:, :count].mean(1)).mean(),
            "critic/overestimate": (chosen - value).mean(),
        }
        if self.edit is not None:
            edited = decision.scores[:, count:].amax(1)
            metrics["edit/win_rate"] = (decision.chosen >= count).float().mean()
            metrics["edit/gain"] = (edited - best_base).mean()
            if self.config.entropy_backup:
                editor: Any = self._backup.edit
                won = decision.chosen >= count
                which = (decision.chosen - count).clamp(min=0)
                bonus = self.edit.temperature * editor.log_prob[rows, which]
                value = value - torch.where(won, bonus, 0.0)
        return value.clone(), metrics  # `decide` works in inference mode

    def update_policy(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of the base policy (imitation) and of the edit policy (value)."""
        metrics = self.base.update(batch, generator)
        if self._targets.student is not None:
            metrics |= self._targets.student.update(batch.next_obs, generator)
        if self.edit is None:
            return metrics
        value = self.critic.value
        with torch.no_grad():
            features = value.encoder(batch.obs)
            projected = value.heads.project(features)
        return metrics | self.edit.update(
            features, batch.act, lambda act: value.score(projected, act), generator
        )

    # -- acting

    def acting(self) -> Steered:
        return self._acting

    def evaluating(self) -> Steered:
        return self._evaluating

    def anywhere(self, num_candidates: int | None = None) -> Steered:
        """Acts in states of no episode, such as imagined ones.

        Args:
            num_candidates: of the base policy; default those of acting.
        """
        count = num_candidates or self.config.num_candidates
        if count not in self._anywhere:
            self._anywhere[count] = self._on_the_fly(self.asides, self._few(), argmax(), count)
        return self._anywhere[count]

    # -- diagnosing

    def edited(self, generator: Generator) -> Callable[[Tensor, Tensor], Tensor]:
        """Encoded observation (B, F) and (B, N, H, A) -> (B, N n, H, A) edits."""
        assert self.edit is not None
        policy = self.edit.policy
        return lambda features, act: policy(features, act, generator, self.config.edits)[0]

    def full_and_cheap(self, obs: Obs, generator: Generator) -> tuple[Tensor, Tensor] | None:
        """Candidates (B, N, H, A) of the whole chain and those that targets use, from the same
        noise; None where these are the same, or nobody knows what noise becomes."""
        cheap, full = self._targets.by_noise, self.base.policy
        if cheap is None or not isinstance(full, ChunkPolicy):
            return None
        rows = len(next(iter(obs.values())))
        dim = self.spec.chunk * self.spec.dim
        noise = torch.randn(rows, self.config.num_candidates, dim, generator=generator)
        return full.decode(obs, noise), cheap(obs, noise)

    # -- files

    def state_dict(self) -> dict[str, Any]:
        return {
            "base": self.base.state_dict(),
            "critic": self.critic.state_dict(),
            "edit": None if self.edit is None else self.edit.state_dict(),
            "heads": self._heads.get_state(),
            "targets": self._targets.state_dict(),
            "updates": self._updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.base.load_state_dict(state["base"])
        self.critic.load_state_dict(state["critic"])
        if self.edit is not None:
            self.edit.load_state_dict(state["edit"])
        self._heads.set_state(state["heads"])
        self._targets.load_state_dict(state["targets"])
        self._updates = state["updates"]

    def save(self, folder: Path) -> None:
        """Write value/, policy/ where the base is ours, and edit/."""
        self.critic.target.save(Path(folder) / "value")
        average: Any = self.base.average
        if hasattr(average, "save"):
            average.save(Path(folder) / "policy")
        if self.edit is not None:
            save_edit(
                self.edit.policy,
                Path(folder) / "edit",
                candidates=self.config.num_candidates,
                edits=self.config.edits,
            )
