"""Soft actor-critic over action chunks, and RLPD, which is the same fed with data.

    y = R + discount * [ min_{e in subset} Qbar_e(s', a') - alpha log pi(a'|s') ],  a' ~ pi(s')
    actor:  min E[ alpha log pi(a|s) - Q(s, a) ],  Q the mean (RLPD) or the minimum (SAC) of heads
    alpha:  holds the entropy at its target, by default -H A / 2

SAC: Haarnoja et al. (arXiv 1812.05905), two heads. RLPD: Ball et al. (arXiv 2302.02948), ten heads
with LayerNorm, two of them in each target, half of every batch from data; the entropy term of the
target (the bracket's second) is left out, as there in tasks with sparse rewards.

Shape legend: E heads, B batch, H action chunk, A action dimension, D = H * A, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from offline.critics.td import Penalty, Subset, TDCritic
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.learning.actor_policy import ActorPolicy
from offline.learning.agent import AgentOfParts, Part
from offline.learning.config import RLConfig
from offline.learning.temperature import Temperature
from offline.networks.heads import TanhGaussian
from offline.networks.normalizer import Change
from offline.networks.optimizers import load_optimizer

Pool = Literal["mean", "min"]

# How the two differ, as keyword arguments of `SAC`.
PLAIN_SAC: dict[str, Any] = {"entropy_backup": True, "pool": "min"}
RLPD: dict[str, Any] = {"entropy_backup": False, "pool": "mean"}


def pooled(q: Tensor, pool: Pool) -> Tensor:
    """(E, ...) -> (...): the mean or the minimum over heads."""
    return q.mean(0) if pool == "mean" else q.amin(0)


class ActorLearner:
    """A tanh-Gaussian actor with its entropy temperature, and their optimisers.

    Args:
        actor: to train.
        temperature: of its entropy.
        lr: of Adam.
        pool: how the actor sees the heads of a critic.
    """

    def __init__(
        self, actor: TanhGaussian, temperature: Temperature, *, lr: float, pool: Pool
    ) -> None:
        self.actor, self.temperature, self.pool = actor, temperature, pool
        self.params = list(actor.parameters())
        self.optimizer = torch.optim.Adam(self.params, lr=lr, fused=True)

    def update(
        self,
        features: Tensor,
        score: Callable[[Tensor], Tensor],
        generator: Generator,
        penalty: Tensor | float = 0.0,
    ) -> dict[str, Tensor]:
        """One step along the value's gradient, and one of the temperature.

        Args:
            features: (B, F), without gradient.
            score: actions (B, 1, D) -> (E, B, 1), differentiable in them.
            generator: draws the actions.
            penalty: () added to the loss.

        Returns:
            actor/loss, actor/q, actor/entropy, actor/temperature
        """
        act, log_prob = self.actor.sample(features, 1, generator)
        q = pooled(score(act), self.pool)
        alpha = self.temperature.value
        loss = (alpha * log_prob - q).mean() + penalty
        self.step(loss)
        entropy = -log_prob.detach().mean()
        self.temperature.update(entropy)
        return {
            "actor/loss": loss.detach(),
            "actor/q": q.detach().mean(),
            "actor/entropy": entropy,
            "actor/temperature": alpha,
        }

    def step(self, loss: Tensor) -> None:
        """One step of the actor; nothing else that `loss` depends on gets a gradient."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self.params)
        self.optimizer.step()

    def absorb(self, change: Change) -> None:
        """See `offline.learning.agent.OnEncoding`."""
        self.actor.absorb(change)

    def networks(self) -> list[nn.Module]:
        """The actor."""
        return [self.actor]

    def state_dict(self) -> dict[str, Any]:
        """Actor, temperature and optimiser."""
        return {
            "actor": self.actor.state_dict(),
            "temperature": self.temperature.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned."""
        self.actor.load_state_dict(state["actor"])
        self.temperature.load_state_dict(state["temperature"])
        load_optimizer(self.optimizer, state["optimizer"])


class SAC(AgentOfParts):
    """An `offline.learning.agent.Agent`: soft actor-critic with any number of heads.

    The actor sees the critic's encoding of an observation and does not train it: standardised
    numbers, and of images what the critic makes of them.

    Args:
        value: the critic to train, its observation statistics set.
        config: rates, sizes and `subset`.
        init_temperature: alpha at first, in units of the reward.
        target_entropy: in nats; default -H A / 2.
        entropy_backup: subtract alpha log pi(a'|s') in the target.
        pool: the heads that the actor maximises.
        penalty: added to the critic's loss, see `TDCritic`.
        clone_weight: of the actor's negative log-likelihood of the batch's actions.
    """

    def __init__(
        self,
        value: ValueFunction,
        config: RLConfig,
        *,
        init_temperature: float = 0.1,
        target_entropy: float | None = None,
        entropy_backup: bool = False,
        pool: Pool = "mean",
        penalty: Penalty | None = None,
        clone_weight: float = 0.0,
    ) -> None:
        self.spec, self.entropy_backup, self.clone_weight = value.spec, entropy_backup, clone_weight
        size = value.spec.chunk * value.spec.dim
        device = next(value.parameters()).device
        self.critic = TDCritic(value, lr=config.lr, target_rate=config.target_rate, penalty=penalty)
        self.draw = Generator().manual_seed(config.seed)
        self.target = Subset(self.critic.target, config.subset, self.draw)
        self.learner = ActorLearner(
            TanhGaussian(
                value.encoder.dim, size, config.hidden, layer_norm=config.actor_layer_norm
            ).to(device),
            Temperature(
                init_temperature,
                -size / 2 if target_entropy is None else target_entropy,
                config.lr,
                device,
            ),
            lr=config.lr,
            pool=pool,
        )
        self._acting, self._evaluating = (
            ActorPolicy(
                value.spec,
                value.encoder,
                self.learner.actor,
                config.hidden,
                greedy=greedy,
                env=value.env,
                meta=value.meta,
                image_encoder=str(value.architecture["image_encoder"]),
            )
            for greedy in (False, True)
        )

    def update_critic(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of critic and target; see `TDCritic.update`."""
        return self.critic.update(batch, self.next_value(batch, generator), generator)

    @torch.no_grad()
    def next_value(self, batch: Batch, generator: Generator) -> Tensor:
        """What a target bootstraps from: (B,)."""
        features = self.critic.value.encoder(batch.next_obs)
        act, log_prob = self.learner.actor.sample(features, 1, generator)
        q = self.target(batch.next_obs, act.unflatten(-1, batch.act.shape[1:])).amin(0)
        if self.entropy_backup:
            q = q - self.learner.temperature.value * log_prob
        return q[:, 0]

    def update_policy(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of actor and temperature; see `ActorLearner.update`."""
        value, shape = self.critic.value, batch.act.shape[1:]
        with torch.no_grad():
            features = value.encoder(batch.obs)
            state = value.heads.project(features)
        penalty: Tensor | float = 0.0
        if self.clone_weight:
            penalty = self.clone_weight * self._clone_loss(features, batch)
        with value.frozen():
            return self.learner.update(
                features,
                lambda act: value.score(state, act.unflatten(-1, shape)),
                generator,
                penalty,
            )

    def pretrain(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of behaviour cloning: the actor's negative log-likelihood of the actions."""
        with torch.no_grad():
            features = self.critic.value.encoder(batch.obs)
        loss = self._clone_loss(features, batch)
        self.learner.step(loss)
        return {"actor/clone_loss": loss.detach()}

    def _clone_loss(self, features: Tensor, batch: Batch) -> Tensor:
        """(): in nats; actions are pulled within .98, as +-1 has no density."""
        return -self.learner.actor.log_prob(features, batch.act.flatten(1)).mean()

    def acting(self) -> ActorPolicy:
        """Samples."""
        return self._acting

    def evaluating(self) -> ActorPolicy:
        """tanh(mean)."""
        return self._evaluating

    def parts(self) -> Mapping[str, Part]:
        """Critic, actor, temperature, optimisers and the stream that heads are drawn from."""
        return {"critic": self.critic, "actor": self.learner, "draw": self.draw}

    def save(self, folder: Path) -> None:
        """Write `value/`, the target critic, and `policy/`, see `ActorPolicy.save`."""
        self.critic.target.save(folder / "value")
        self._acting.save(folder / "policy")
