"""DSRL: steer a frozen policy by the noise it decodes (arXiv 2506.15799), noise-aliased variant.

A flow or diffusion policy is a function from noise to actions, a = decode(s, w). An actor chooses
w, within bounds, in place of N(0, I). Two critics, so that data without noises can be learnt from:

    Q(s, a)    by temporal differences on actions,  a' = decode(s', w'),  w' ~ actor(s')
    Q_w(s, w)  each head distilled from its own of Q:  (Q_w(s, w) - Q(s, decode(s, w)))^2 / 2,
               w ~ N(0, I) or, for half of the rows, the actor
    actor:     soft actor-critic on Q_w, so nothing backpropagates through the chain.

As released: noise within +-1.5, target entropy 0 (of w / bound), a distillation step for every two
of the critic. Departures: ten heads whose mean the actor climbs, as the other agents here do (two
and their minimum); one actor step for each environment step (as many as of the critic); no entropy
in the backup unless asked for; and the actor's own noise in the distillation. N(0, I) hardly ever
draws the corners of the bounds, where an actor soon is and Q_w is then too high: on a two-armed
bandit with a poor clone, success was .92 to .98 with it and .44 to .55 without (three seeds each).

Shape legend: E heads, B batch, n candidates, H action chunk, A action dimension, D = H * A of the
base policy, whose chunk may be longer than the critic's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from annotated_types import Ge, Le
from torch import Generator, Tensor, nn

from genpol.agents.config import TrainConfig
from genpol.agents.imitation import Imitation
from genpol.policies.policy import load_policy
from genpol.steering.action_units import Units
from offline.critics.td import Penalty, Subset, TDCritic, td_loss
from offline.critics.value import ValueFunction
from offline.data.batch import Batch
from offline.documents import as_document
from offline.draws import normal, uniform
from offline.errors import InputError
from offline.learning.actor_policy import ActorPolicy
from offline.learning.agent import AgentOfParts, Part
from offline.learning.sac import ActorLearner, Pool
from offline.learning.temperature import Temperature
from offline.model_files import LARGEST
from offline.networks.heads import TanhGaussian
from offline.networks.normalizer import Change
from offline.networks.optimizers import load_optimizer
from offline.spec import ActionSpec
from offline.types import Obs, Policy

KIND = "noise"


@dataclass(frozen=True)
class NoiseMeta:
    """What the meta of a `NoisePolicy`'s actor must say."""

    chunk: Annotated[int, Ge(1), Le(LARGEST)]


class Decoder(Policy, Protocol):
    """A policy that is a function from noise to actions: a flow, or diffusion by DDIM."""

    def decode(self, obs: Obs, noise: Tensor) -> Tensor:
        """Standard normal noise (B, n, D) -> chunks (B, n, H, A), normalised by `spec`."""

    def save(self, folder: Path) -> Path:
        """Write it, for `genpol.policies.policy.load_policy`."""


class DSRL(AgentOfParts):
    """An `offline.learning.agent.Agent`.

    Args:
        base: has `decode`; stays as it is but for `pretrain`.
        value: the critic to train, its observation statistics set.
        config: its settings.
        pool: the heads that the actor maximises.
        penalty: added to the critic's loss, see `TDCritic`.
        actor_share: of the rows on which the noise critic is distilled at the actor's noise
            instead of N(0, I); 0 as released.

    Raises:
        InputError: the base policy does not decode noise.
        SpecError: its actions are not the critic's.
    """

    def __init__(
        self,
        base: Decoder,
        value: ValueFunction,
        config: TrainConfig,
        *,
        pool: Pool = "mean",
        penalty: Penalty | None = None,
        actor_share: float = 0.5,
    ) -> None:
        if not getattr(base, "has_decode", False):
            raise InputError(
                "DSRL chooses the noise that a base policy decodes, and a "
                f"{type(base).__name__} takes none: pass a flow or diffusion policy of "
                "`genpol clone`"
            )
        value.spec.require_scorable(base.spec)
        self.config, self.spec, self.actor_share = config, value.spec, actor_share
        self.base = Imitation.of(base, config)
        self.critic = TDCritic.of(value, config, penalty)
        self.draw = Generator().manual_seed(config.seed)
        self.target = Subset(self.critic.target, config.subset, self.draw)
        bound = (config.noise_bound,) * base.spec.dim
        noise = ActionSpec.from_bounds([-b for b in bound], bound, chunk=base.spec.chunk)
        device = next(value.parameters()).device
        self.noise_critic = NoiseCritic(value, noise, lr=config.lr)
        target_entropy = 0.0 if config.target_entropy is None else config.target_entropy
        self.learner = ActorLearner(
            TanhGaussian(
                value.encoder.dim,
                noise.chunk * noise.dim,
                config.hidden,
                layer_norm=config.actor_layer_norm,
            ).to(device),
            Temperature(config.init_temperature, target_entropy, config.lr, device),
            lr=config.lr,
            pool=pool,
        )
        self._acting, self._evaluating = (
            NoisePolicy(
                self.base.average,
                ActorPolicy(
                    noise,
                    value.encoder,
                    self.learner.actor,
                    config.hidden,
                    greedy=greedy,
                    env=value.env,
                    meta={"chunk": value.spec.chunk},
                    image_encoder=str(value.architecture["image_encoder"]),
                ),
                value.spec,
            )
            for greedy in (False, True)
        )
        self.distill_steps = max(1, round(config.utd / 2))

    # -- learning

    def pretrain(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of cloning by the base policy, which is frozen ever after."""
        return self.base.update(batch, generator)

    def update_critic(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of the action critic and its target; see `TDCritic.update`."""
        with torch.no_grad():
            features = self.critic.value.encoder(batch.next_obs)
            w, log_prob = self.learner.actor.sample(features, 1, generator)
            act = self._acting.decode(batch.next_obs, w * self.config.noise_bound)
            next_value = self.target(batch.next_obs, act).amin(0)
            if self.config.entropy_backup:
                next_value = next_value - self.learner.temperature.value * log_prob
        return self.critic.update(batch, next_value[:, 0], generator)

    def update_policy(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """Distillation steps of the noise critic, then one of actor and temperature.

        Returns:
            critic/distill_loss and those of `ActorLearner.update`
        """
        value = self.critic.value
        with torch.no_grad():
            features = value.encoder(batch.obs)
            state = value.heads.project(features)
        for _ in range(self.distill_steps):
            with torch.no_grad():
                w = self._distilled_at(features, generator)
                act = self._acting.decode(batch.obs, w * self.config.noise_bound)
                q = value.score(state, act)[..., 0]
            loss = self.noise_critic.update(features, w, q)
        with torch.no_grad():
            project = self.noise_critic.heads.project(features)
        return {"critic/distill_loss": loss} | self.learner.update(
            features, lambda w: self.noise_critic.score(project, w), generator
        )

    def _distilled_at(self, features: Tensor, generator: Generator) -> Tensor:
        """Noise / bound (B, 1, D), the actor's in a random share of the rows."""
        own, _ = self.learner.actor.sample(features, 1, generator)
        prior = normal(own.shape, generator, own)
        rows = uniform((len(own), 1, 1), generator, own)
        return torch.where(rows < self.actor_share, own, prior / self.config.noise_bound)

    # -- acting

    def acting(self) -> NoisePolicy:
        """Decodes noise drawn from the actor."""
        return self._acting

    def evaluating(self) -> NoisePolicy:
        """Decodes the actor's mode."""
        return self._evaluating

    # -- files

    def parts(self) -> Mapping[str, Part]:
        """All weights, optimisers and the stream that heads are drawn from."""
        return {
            "base": self.base,
            "critic": self.critic,
            "noise_critic": self.noise_critic,
            "actor": self.learner,
            "draw": self.draw,
        }

    def save(self, folder: Path) -> None:
        """Write `value/`, the action critic's target, and `policy/`, see `NoisePolicy.save`."""
        self.critic.target.save(folder / "value")
        self._acting.save(folder / "policy")


class NoiseCritic:
    """Q_w(s, w / bound): heads of the action critic's sizes, on its encoding of observations.

    Args:
        value: the action critic.
        noise: spec of the noise, with `noise.chunk` that of the base policy.
        lr: of Adam.
    """

    def __init__(self, value: ValueFunction, noise: ActionSpec, *, lr: float) -> None:
        # The bound is of values by states and actions; noise reaches these through the policy.
        sizes: dict[str, Any] = value.architecture | {"lipschitz_bound": None}
        made = ValueFunction(noise, value.obs_shapes, **sizes)
        self.heads = made.heads.to(next(value.parameters()).device)
        self.shape, self.dim = (noise.chunk, noise.dim), noise.chunk * noise.dim
        self.optimizer = torch.optim.Adam(self.heads.parameters(), lr=lr, fused=True)

    def score(self, projected: Tensor, w: Tensor) -> Tensor:
        """`heads.project(features)` and noise / bound (B, n, D) -> (E, B, n)."""
        return self.heads(projected, w.unflatten(-1, self.shape))

    def update(self, features: Tensor, w: Tensor, q: Tensor) -> Tensor:
        """One step towards q (E, B), each head to its own, at noise / bound (B, 1, D)."""
        loss = td_loss(self.score(self.heads.project(features), w)[..., 0], q)
        self.optimizer.zero_grad(set_to_none=True)
        loss.mean(1).sum().backward()
        self.optimizer.step()
        return loss.detach().mean()

    def absorb(self, change: Change) -> None:
        """See `offline.learning.agent.OnEncoding`."""
        self.heads.absorb(change)

    def networks(self) -> list[nn.Module]:
        """The heads."""
        return [self.heads]

    def state_dict(self) -> dict[str, Any]:
        """Heads and optimiser."""
        return {"heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned."""
        self.heads.load_state_dict(state["heads"])
        load_optimizer(self.optimizer, state["optimizer"])


class NoisePolicy:
    """What a base policy makes of an actor's noise: an `offline.types.Policy`.

        FOLDER/policy.*   the actor, its spec that of the noise, kind "noise"
        FOLDER/base/      the base policy

    Args:
        base: decodes noise.
        actor: chooses noise, normalised by its spec's bounds.
        spec: that actions are normalised by; of longer chunks the first `spec.chunk` are kept.
    """

    def __init__(self, base: Decoder, actor: ActorPolicy, spec: ActionSpec) -> None:
        self.base, self.actor, self.spec = base, actor, spec
        self._units = Units(base.spec, spec)

    def reset(self) -> None:
        self.base.reset()

    def commit(self, act: Tensor) -> None:
        self.base.commit(act)

    def keep(self, rows: Tensor) -> None:
        self.base.keep(rows)

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """n chunks for each row, each of its own noise: (B, n, H, A)."""
        return self._of(obs, self.actor.sample(obs, n, generator))

    def mode(self, obs: Obs, generator: Generator | None = None) -> Tensor:
        """The chunk of the actor's most likely noise: (B, H, A)."""
        return self._of(obs, self.actor.mode(obs)[:, None])[:, 0]

    def _of(self, obs: Obs, noise: Tensor) -> Tensor:
        return self.decode(obs, self.actor.spec.unnormalize(noise).flatten(2))

    def decode(self, obs: Obs, noise: Tensor) -> Tensor:
        """Standard normal noise (B, n, D) -> (B, n, H, A), clipped as the environment does."""
        act = self.base.decode(obs, noise)[:, :, : self.spec.chunk]
        return self._units.convert(self._units.clip(act), act.device)

    def save(self, folder: str | Path) -> Path:
        """Write actor and base policy."""
        folder = Path(folder)
        self.base.save(folder / "base")
        return self.actor.save(folder, kind=KIND)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> NoisePolicy:
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing or torn.
        """
        actor = ActorPolicy.load(folder, device=device, kind=KIND)
        base = load_policy(Path(folder) / "base", device=device)
        meta = as_document(actor.meta, NoiseMeta, f'{folder}: "meta"')
        return cls(base, actor, base.spec.with_chunk(meta.chunk))
