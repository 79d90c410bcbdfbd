"""EXPO: stable reinforcement learning with expressive policies (arXiv 2507.07986).

Nothing backpropagates value gradients through the chain of an expressive policy. It keeps imitating
(all data, offline and its own), a small edit policy moves its proposals up the value, and the
"on-the-fly" policy picks the best of both,

    pi_otf(s) = argmax_a Q(s, a)  over  a_1..a_N ~ base(s)  and  a_i + beta * edit(s, a_i),

for acting and for the target alike: y = R + discount * Q(s', pi_otf(s')). Both are `Steered`.
Without edits this is best-of-N; the base may also be a frozen black box, which is then only edited
and selected from.

Shape legend: E heads, B batch, N base candidates, K candidates with edits, H action chunk, A action
dimension.
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
from genpol.steering.steered import Decision, Steered
from offline.critics.td import Encoded, Penalty, Subset, TDCritic
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.draws import normal
from offline.learning.agent import AgentOfParts, Part
from offline.types import Obs, Policy


class EXPO(AgentOfParts):
    """The agent of EXPO: a policy that imitates, edits of its proposals, the best of them all.

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
        self.base = Imitation.of(base, config)
        self.critic = TDCritic.of(value, config, penalty)
        self.edit = _edit_learner(value, config) if config.edits else None
        # One stream draws the heads that act, and those that judge targets.
        self.heads = Generator().manual_seed(config.seed + 2)
        few = Subset(self.critic.target, config.subset, self.heads)
        # Evaluating asks all heads, which draws none, so it leaves training as it was.
        every = Subset(self.critic.target, value.ensemble, self.heads)
        newest = self.base.average if config.backup_uses_average else self.base.policy
        self.stateless_base = target_base or self.base.average
        """Proposes for states of no episode, such as those of a replay."""
        self.targets = TargetProposals(
            target_base or newest,
            config,
            screen=few,
            forever=self.base.frozen,  # a black box that never changes is asked once
            rows=(offline_rows, replay_slots),
        )
        act = argmax() if config.act_select == "argmax" else softmax(config.act_temperature)
        self.judge = few
        self._acting = self._on_the_fly(self.base.average, few, act)
        self._evaluating = self._on_the_fly(self.base.average, every, argmax())
        self.backup = self._on_the_fly(target_base or newest, few, argmax(wait=False))
        """The on-the-fly policy of targets; it chooses among what `targets` proposes."""
        self._stateless: dict[int, Steered[Encoded]] = {}
        self.updates = 0

    def _on_the_fly(
        self, base: Policy, critic: Subset, select: Select, count: int | None = None
    ) -> Steered[Encoded]:
        edit = None if self.edit is None else Editor(self.edit.policy, self.config.edits)
        count = count or self.config.num_candidates
        clip = edit is None or self.config.clip_edits
        return Steered(base, critic, count, select, edit=edit, clip=clip, check=False)

    # -- learning

    def update_critic(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step towards the value of what the on-the-fly policy would do next."""
        with torch.no_grad():
            proposed = batch.proposed  # (B, N, H, A), where it was recorded
            if proposed is None:
                proposed = self.targets.candidates(
                    batch.next_obs, batch.key, self.updates, generator
                )
            decision = self.backup.choose(batch.next_obs, proposed, generator)
            next_value = self._next_value(decision).clone()  # it was made in inference mode
        self.updates += 1
        metrics = self._of_choice(decision, next_value) | self.targets.metrics()
        if self.edit is not None and self.config.entropy_backup:
            next_value = next_value - self.edit.temperature * self._edit_log_prob(decision)
        return metrics | self.critic.update(batch, next_value, generator)

    def _next_value(self, decision: Decision[Encoded]) -> Tensor:
        """v(s') (B,) of the chosen actions: by the heads that chose them, or by others."""
        if self.config.backup == "plain":
            return decision.value
        disjoint = self.config.backup == "decoupled"
        chosen = decision.action[:, None]
        others = self.judge.second_opinion(decision.features, chosen, disjoint=disjoint)
        return others[..., 0].amin(0)

    def _edit_log_prob(self, decision: Decision[Encoded]) -> Tensor:
        """log pi of the chosen edit (B,), 0 where no edit was chosen."""
        assert decision.log_prob is not None
        which = decision.chosen - decision.num_base
        log_prob = decision.log_prob.gather(1, which.clamp(min=0)[:, None])[:, 0]
        return torch.where(which >= 0, log_prob, 0.0)

    def _of_choice(self, decision: Decision[Encoded], value: Tensor) -> dict[str, Tensor]:
        """What choosing gains, how far the choice is overestimated, and what edits add."""
        unedited, edited = decision.scores.tensor_split([decision.num_base], dim=1)
        metrics = {
            "critic/selection_gain": (decision.value - unedited.mean(1)).mean(),
            "critic/overestimate": (decision.value - value).mean(),
        }
        if self.edit is not None:
            metrics["edit/win_rate"] = (decision.chosen >= decision.num_base).float().mean()
            metrics["edit/gain"] = (edited.amax(1) - unedited.amax(1)).mean()
        return metrics

    def update_policy(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of the base policy (imitation) and of the edit policy (value)."""
        metrics = self.base.update(batch, generator)
        if self.targets.student is not None:
            metrics |= self.targets.student.update(batch.next_obs, generator)
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

    def acting(self) -> Steered[Encoded]:
        return self._acting

    def evaluating(self) -> Steered[Encoded]:
        return self._evaluating

    def stateless(self, num_candidates: int | None = None) -> Steered[Encoded]:
        """Acts in states of no episode, such as imagined ones.

        Args:
            num_candidates: of the base policy; default those of acting.
        """
        count = num_candidates or self.config.num_candidates
        if count not in self._stateless:
            self._stateless[count] = self._on_the_fly(
                self.stateless_base, self.judge, argmax(), count
            )
        return self._stateless[count]

    # -- diagnosing

    def edited(self, generator: Generator) -> Callable[[Tensor, Tensor], Tensor]:
        """Encoded observation (B, F) and (B, N, H, A) -> (B, N n, H, A) edits."""
        assert self.edit is not None
        policy = self.edit.policy
        return lambda features, act: policy(features, act, generator, self.config.edits)[0]

    def full_and_cheap(self, obs: Obs, generator: Generator) -> tuple[Tensor, Tensor] | None:
        """Candidates (B, N, H, A) of the whole chain and those that targets use, from the same
        noise; None where these are the same, or nobody knows what noise becomes."""
        cheap, full = self.targets.by_noise, self.base.policy
        if cheap is None or not isinstance(full, ChunkPolicy):
            return None
        rows = len(next(iter(obs.values())))
        dim = self.spec.chunk * self.spec.dim
        like = next(full.parameters())
        noise = normal((rows, self.config.num_candidates, dim), generator, like)
        return full.decode(obs, noise), cheap(obs, noise)

    # -- files

    def parts(self) -> Mapping[str, Part]:
        return {
            "base": self.base,
            "critic": self.critic,
            "edit": self.edit,
            "heads": self.heads,
            "targets": self.targets,
        }

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.updates = state["updates"]

    def save(self, folder: Path) -> None:
        """Write value/, policy/ where the base is ours, and edit/."""
        self.critic.target.save(Path(folder) / "value")
        if isinstance(self.base.average, ChunkPolicy):
            self.base.average.save(Path(folder) / "policy")
        if self.edit is not None:
            save_edit(
                self.edit.policy,
                Path(folder) / "edit",
                candidates=self.config.num_candidates,
                edits=self.config.edits,
            )


def _edit_learner(value: ValueFunction, config: TrainConfig) -> EditLearner:
    """The edit policy on the critic's encoding, with its temperature and optimisers."""
    spec = value.spec
    policy = EditPolicy(
        value.encoder.dim,
        spec.chunk * spec.dim,
        config.hidden,
        scale=config.edit_scale,
        clip=config.clip_edits,
        layer_norm=config.edit_layer_norm,
    ).to(next(value.parameters()).device)
    return EditLearner(
        policy,
        lr=config.lr,
        init_temperature=config.init_temperature,
        target_entropy=config.target_entropy,
        entropy_of=config.edit_entropy,
        scale_lr=config.edit_scale_lr if config.adaptive_edit_scale else None,
    )
