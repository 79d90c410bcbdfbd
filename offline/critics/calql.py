"""Cal-QL: conservative Q-learning, calibrated by Monte-Carlo returns (arXiv 2303.05479).

Per state-action pair of the data, each head minimises

    (Q(s, a) - y)^2 / 2 + alpha * [ logsumexp_i ( Q~(s, a_i) - log mu(a_i) ) - Q(s, a) ]

    y = R + discount * min_e max_j Qbar_e(s', a'_j),  a'_j ~ pi(s')     (no entropy in the backup)

where the a_i are drawn from uniform, pi(s) and pi(s'), mu is the density each was drawn from, and
Q~ is Q for uniform actions but max(Q, G) for the policy's, G the return that the data really got
from s: pushing the policy's values below what is known to be reachable would make Q useless as a
measure. The policy imitates the data, as in the first 40,000 steps of CQL's published code
(arXiv 2006.04779), or maximises Q with an entropy bonus; steering never uses it. Steering calls for
the value of what demonstrators do next, not of an optimum that no candidate will follow: with a
policy that maximises Q, every mistake looks as if it could be made good.

Shape legend: E heads, B batch, n actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from offline.critics.td import follow, target_of, td_loss, td_metrics, td_target
from offline.critics.value import ValueFunction
from offline.critics.value_config import ValueConfig
from offline.data.batch import Batch
from offline.draws import uniform
from offline.networks.heads import TanhGaussian
from offline.networks.optimizers import load_optimizer


def next_value(q_EBn: Tensor, backup: str = "max") -> Tensor:
    """v(s') = min_e max_j Q_e(s', a'_j): (B,); the mean over j with backup "mean"."""
    q_EB = q_EBn.amax(-1) if backup == "max" else q_EBn.mean(-1)
    return q_EB.amin(0)


def calibrated(q_EBn: Tensor, mc_return_B: Tensor) -> Tensor:
    """max(Q, G): values of policy actions are not pushed below the return the data got.

    G is NaN where no end is known (an episode that runs, or was cut off): nothing is calibrated.
    """
    known = mc_return_B.nan_to_num(nan=-math.inf)
    return torch.maximum(q_EBn, known[:, None])


def cql_gap(q_samples_EBn: Tensor, log_density_Bn: Tensor, q_data_EB: Tensor) -> Tensor:
    """logsumexp_i (Q(s, a_i) - log mu(a_i)) - Q(s, a): (E, B)."""
    return torch.logsumexp(q_samples_EBn - log_density_Bn, dim=-1) - q_data_EB


def actor_loss(q_EB: Tensor, log_prob_B: Tensor, temperature: Tensor | float) -> Tensor:
    """temperature * log pi(a|s) - min_e Q_e(s, a): (B,), a reparametrised."""
    return temperature * log_prob_B - q_EB.amin(0)


class CalQL:
    """A critic, its target and the policy that Cal-QL asks for actions.

    Args:
        value: the critic to train.
        config: its settings.
    """

    def __init__(self, value: ValueFunction, config: ValueConfig) -> None:
        self.config = config
        self.critic = value
        self.target = target_of(value)
        device = next(value.parameters()).device
        self.act_dim = value.spec.chunk * value.spec.dim
        self.actor = TanhGaussian(value.encoder.dim, self.act_dim, config.hidden).to(device)
        self.log_temperature = torch.zeros((), device=device, requires_grad=True)
        self.params = [list(value.parameters()), list(self.actor.parameters())]
        adam = torch.optim.Adam
        self.critic_optimizer = adam(self.params[0], lr=config.lr, foreach=True)
        self.actor_optimizer = adam(self.params[1], lr=config.actor_lr, foreach=True)
        self.temperature_optimizer = adam([self.log_temperature], lr=config.lr)
        # Both bounds of the sparse reward's values are known; a target beyond them is an error.
        sparse = config.reward == "sparse"
        self.bounds = (-1 / (1 - config.discount), 0.0) if sparse else None

    def update(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of critic, policy, temperature and target; returns scalars to log."""
        n, size = self.config.cql_actions, len(batch)
        critic, target, shape = self.critic, self.target, batch.act.shape[1:]
        features = critic.encoder(batch.obs)
        state = features.detach()  # the policy learns on what the critic makes of images

        with torch.no_grad():
            both = torch.cat([state, critic.encoder(batch.next_obs)])
        act_2Bn, log_prob_2Bn = self.actor.sample(both, n, generator)
        act_pi, act_next = act_2Bn.detach().unflatten(-1, shape).chunk(2)
        log_pi, log_next = log_prob_2Bn.detach().chunk(2)
        with torch.no_grad():
            next_v = next_value(target(batch.next_obs, act_next), self.config.cql_backup)
            y = td_target(batch.reward, batch.discount, next_v)
            if self.bounds is not None:
                y = y.clamp(*self.bounds)

        # One call scores the data's chunk and all drawn ones; the state's part is shared.
        anywhere = uniform((size, n, *shape), generator, state) * 2 - 1
        chunks = torch.cat([batch.act[:, None], anywhere, act_pi, act_next], dim=1)
        projected = critic.heads.project(features)
        q = critic.score(projected, chunks)
        q_data, q_uniform, q_policy = q[..., 0], q[..., 1 : n + 1], q[..., n + 1 :]
        samples = torch.cat([q_uniform, calibrated(q_policy, batch.mc_return)], dim=-1)
        log_uniform = log_pi.new_full((size, n), -self.act_dim * math.log(2))
        gap = cql_gap(samples, torch.cat([log_uniform, log_pi, log_next], dim=-1), q_data)
        td = td_loss(q_data, y)
        loss = (td + self.config.cql_alpha * gap).mean(1).sum()

        # The policy: gradients with respect to its own weights only.
        act, log_prob = act_2Bn[:size, :1], log_prob_2Bn[:size, 0]
        temperature = self.log_temperature.detach().exp()
        if self.config.cql_actor == "clone":
            data_log_prob = self.actor.log_prob(state, batch.act.flatten(1))
            actor = (temperature * log_prob - data_log_prob).mean()
        else:
            q_act = critic.score(projected.detach(), act.unflatten(-1, shape))[..., 0]
            actor = actor_loss(q_act, log_prob, temperature).mean()

        _step(self.actor_optimizer, self.params[1], actor)
        _step(self.critic_optimizer, self.params[0], loss)
        entropy = -log_prob.detach().mean()
        _step(
            self.temperature_optimizer,
            [self.log_temperature],
            self.log_temperature * (entropy + self.act_dim),  # target entropy: -H * A
        )
        follow(target, critic, self.config.target_rate)
        return td_metrics(td, q_data, y) | {
            "critic/cql_gap": gap.detach().mean(),
            "critic/loss": loss.detach(),
            "critic/q_uniform": q_uniform.detach().mean(),
            "critic/q_policy": q_policy.detach().mean(),
            "critic/calibration": (q_policy.detach() < batch.mc_return[:, None]).float().mean(),
            "actor/entropy": entropy,
            "actor/temperature": temperature,
        }

    def weights(self) -> list[Tensor]:
        """All that is learnt."""
        return [*self.params[0], *self.target.parameters(), *self.params[1], self.log_temperature]

    def state_dict(self) -> dict[str, Any]:
        """Networks, temperature and optimisers."""
        return {
            "critic": self.critic.state_dict(),
            "target": self.target.state_dict(),
            "actor": self.actor.state_dict(),
            "log_temperature": self.log_temperature.detach(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned; learning goes on at the configuration's rates."""
        for part in ("critic", "target", "actor"):
            getattr(self, part).load_state_dict(state[part])
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
        rates = (self.config.lr, self.config.actor_lr, self.config.lr)
        saved = state["optimizers"]
        for optimizer, rate, its in zip(self._optimizers(), rates, saved, strict=True):
            load_optimizer(optimizer, its, rate)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.critic_optimizer, self.actor_optimizer, self.temperature_optimizer]


def _step(optimizer: torch.optim.Optimizer, params: list[Any], loss: Tensor) -> None:
    """One step along the gradient of `loss` with respect to `params` alone."""
    for param, gradient in zip(params, torch.autograd.grad(loss, params), strict=True):
        param.grad = gradient
    optimizer.step()
