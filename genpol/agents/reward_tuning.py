"""`RewardTuning`: a diffusion or flow policy that learns from rewards of what it drew.

It joins `genpol.policies.chains` to the objectives of `diffusion/`, as `diffusion.finetune` joins
image pipelines to them, and knows nothing of where rewards come from:

    learn    one round: all of the following, with a reward of chunks in given observations
    draw     chunks, with the log-probs of their denoising steps or as finished chunks alone
    scored   what an objective sees of them and of their rewards
    improve  K optimiser steps by the exact gradient of two passes, and the average of the weights

The reference is the policy as it was when tuning began. The average is what acts and is deployed.

Shape legend: G groups (observations), N chains, T denoising steps, S draws of (t, eps),
D = H * A numbers of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from diffusion.chain import Condition, DenoisingChain, sample_chain
from diffusion.config import FinetuneConfig
from diffusion.forward import Draws, draw_times
from diffusion.guards.forward_kl import forward_kl
from diffusion.objective import Rollouts, step_weights
from diffusion.objectives.make import make_objective
from diffusion.scores import ChainScores, ForwardScores, Scored, ratio_error, take
from diffusion.trained_weights import TrainedWeights
from diffusion.two_pass import two_pass_backward
from genpol.agents.config import TrainConfig
from genpol.agents.imitation import Imitation
from genpol.agents.tuning_config import FORWARD, TEMPERED
from genpol.policies.chains import PolicyChains, require_chain
from genpol.policies.policy import MAX_GRAD_NORM, ChunkPolicy
from offline.errors import Diverged, InputError
from offline.finite import LOWER
from offline.types import Obs, Policy

# Observations and chunks (G, B, H, A), normalised by the policy's spec -> (G, B).
Reward = Callable[[Obs, Tensor], Tensor]

MICRO_BATCH = 4096  # denoising steps that go through the network together
KL_CHAINS = 64  # that the distance from the reference is estimated by
AGREES = 1e-6  # KL per dimension below which two networks say the same


class RewardTuning:
    """A policy in fine-tuning by reward, its reference, its average and the objective.

    Args:
        base: a diffusion or flow policy of our own; it is copied.
        config: `agent` names the objective; see `TuningConfig`, `base_lr` and `base_ema`.

    Raises:
        InputError: a policy that cannot be tuned so, or settings that leave it no densities.
    """

    def __init__(self, base: Policy, config: TrainConfig) -> None:
        require_chain(base)
        assert isinstance(base, ChunkPolicy)
        if config.base_lr == 0:
            raise InputError(
                f"--base-lr 0 freezes the policy that --agent {config.agent} trains: pass a rate "
                "above 0, such as 1e-4"
            )
        self.config, self.forward = config, config.agent in FORWARD
        self.tempered = config.agent in TEMPERED
        self.base = Imitation.of(base, config)
        """The newest weights and their average. It clones where the policy did not come trained."""
        settings = {"sampler": config.sampler, "noise_level": config.noise_level}
        self.chains = PolicyChains(self.base.policy, **settings)  # type: ignore[arg-type]
        self.reference = self.chains.frozen()
        dimensions = self.chains.shape[0]
        self.settings = finetune_settings(config, dimensions)
        self.objective: Any = make_objective(self.settings)
        if self.forward:
            draws = config.draws
            self.weights = torch.full((draws,), 1 / draws, dtype=torch.float64)
        else:
            self.chains.require_densities(f"--agent {config.agent}")
            self.weights = step_weights(self.chains.process, config.step_weights)
        decay = getattr(self.objective, "decay", None)
        self.trained = TrainedWeights(
            self.chains.trainable(), self.settings, decay, self._require_finite
        )

    # -- what an objective asks of a policy's reference; see `diffusion.scores.Reference`

    def predict_reference(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The network as it was before tuning."""
        return self.reference.predict(x_t, t, cond)

    def as_reference(self) -> AbstractContextManager[Any]:
        """The reference is a network of its own, so nothing has to change places."""
        return nullcontext()

    # -- one round

    def learn(
        self,
        obs: Obs,
        reward: Reward,
        generator: Generator,
        names: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """Draw a group of chunks for each of G observations, have them rewarded, and improve.

        Args:
            obs: G observations.
            reward: called with the observations and chunks (G, B, H, A), as they are executed and
                normalised by the policy's spec; returns (G, B), higher is better.
            generator: draws everything.
            names: (G,) by which an observation is known when it comes again; only ddpo asks.

        Returns:
            reward/mean, reward/spread (standard deviation within groups, mean over them),
            reward/capped (share of groups whose rewards were scaled down, see `capped`),
            kl/forward (KL from the reference in nats per chunk, before the steps), and those of
            `improve`.
        """
        count = self.config.group_size
        cond = self.chains.condition(obs)
        rows = len(cond["row"])
        group = torch.arange(rows, device=self.chains.device).repeat_interleave(count)
        chain = self.draw(cond, group, generator)
        act = self.chains.action(chain.sample).unflatten(0, (rows, count))
        rewards = reward(obs, act).detach().float()
        if tuple(rewards.shape) != (rows, count):
            raise InputError(
                f"the reward of chunks {tuple(act.shape)} has the shape {tuple(rewards.shape)}, "
                f"expected one number for each chunk, ({rows}, {count})"
            )
        asked, share = rewards, 0.0
        if self.tempered:
            asked, share = capped(rewards, self.config.beta, self.config.kl_cap)
        scores, rollouts = self.scored(chain, cond, group, asked.flatten(), generator)
        apart = self.distance(chain, take(cond, group), generator)
        each = None if names is None else [name for name in names for _ in range(count)]
        return {
            "reward/mean": float(rewards.mean()),
            "reward/spread": float(rewards.std(1).mean()),
            "reward/capped": share,
            "kl/forward": apart,
            **self.improve(scores, rollouts, each),
        }

    def draw(self, cond: Condition, group: Tensor, generator: Generator) -> DenoisingChain:
        """N chains for the rows `group` (N,) of a condition, by the newest weights or, where the
        objective asks for it, by its average of them."""
        chains, count = self.chains, len(group)
        room = DenoisingChain.empty(
            count,
            chains.shape,
            chains.process.num_steps,
            device=chains.device,
            path=not self.forward,
            reference=not self.forward,
        )
        with self.drawing():
            return sample_chain(
                chains.predict,
                chains.process,
                take(cond, group),
                chains.shape,
                streams(count, generator),
                reference=None if self.forward else self.reference.predict,
                device=chains.device,
                into=room,
            )

    def drawing(self) -> AbstractContextManager[Any]:
        """Within this context the weights are in place that draw."""
        if self.trained.updates == 0:
            self._begin()
        by_anchor = getattr(self.objective, "drawn_by_anchor", False)
        return self.trained.anchored() if by_anchor else nullcontext()

    def scored(
        self,
        chain: DenoisingChain,
        cond: Condition,
        group: Tensor,
        reward: Tensor,
        draws: Generator | Draws,
    ) -> tuple[ChainScores | ForwardScores, Rollouts]:
        """How chains are scored again, and what the objective sees of them.

        Args:
            chain: N of them.
            cond: of G observations.
            group: (N,) each chain's observation.
            reward: (N,).
            draws: times and noises of each observation, which its chunks share, or what draws
                them.
        """
        reward, group = reward.cpu(), group.cpu()
        dimensions = chain.dimensions
        if not self.forward:
            assert chain.log_prob_ref is not None
            channels = getattr(self.objective, "channels", ("log_prob",))
            return ChainScores(
                self.chains.predict,
                self.reference.predict,
                self.chains.process,
                chain,
                cond,
                group,
                channels,
            ), Rollouts(
                chain.log_prob.cpu(),
                chain.log_prob_ref.cpu(),
                reward,
                group,
                self.weights,
                dimensions,
            )
        objective, process = self.objective, self.chains.forward
        if isinstance(draws, Generator):
            noise = [streams(objective.draws, draws) for _ in range(len(cond["row"]))]
            draws = draw_times(process, self.chains.shape, noise, self.chains.device)
        scores = ForwardScores(
            objective,
            process,
            self.chains.predict,
            chain.sample,
            draws,
            cond,
            group,
            self.chains.predict if objective.anchor else None,
            self.reference.predict if getattr(objective, "needs_reference", False) else None,
            anchor_weights=self.trained.anchored,
        )
        old = reference = torch.zeros(len(group), objective.draws)
        if not objective.linear:
            table = scores.table(self.chains.predict, MICRO_BATCH)
            other = scores.reference_table(self, MICRO_BATCH)
            old, reference = (v if v.ndim == 2 else v[..., 0] for v in (table, other))
            scores = replace(scores, rollout_table=table)
        return scores, Rollouts(old, reference, reward, group, self.weights, dimensions)

    def improve(
        self,
        scores: Scored,
        rollouts: Rollouts,
        names: list[str] | None = None,
    ) -> dict[str, float]:
        """K optimiser steps on what was drawn, each followed by the average.

        Args:
            scores, rollouts: as of `scored`, or tables of one's own.
            names: (N,) by which an objective may know groups again, such as ddpo's tracker.

        Returns:
            The objective's metrics at the last step, check/ratio_error where steps are scored, and
            policy/gradient_norm.
        """
        metrics = {}
        if not self.forward:
            metrics["check/ratio_error"] = self._checked(scores, rollouts)
        if hasattr(self.objective, "prepare"):
            each = names or [str(number) for number in rollouts.group.tolist()]
            rollouts = self.objective.prepare(rollouts, each)
        norms = []
        for k in range(self.config.inner_steps):
            self._zero_grad()
            said = two_pass_backward(
                scores.score,
                self.objective,
                rollouts,
                MICRO_BATCH,
                current=scores.at_rollout(rollouts) if k == 0 else None,
                ahead=scores.ahead,
                restart=self._zero_grad,
            )
            norms.append(self.trained.step())
            average = self.base.average
            average.follow(self.base.policy, self.trained.updates - 1, self.config.base_ema)
        return metrics | said | {"policy/gradient_norm": sum(norms) / len(norms)}

    def distance(self, chain: DenoisingChain, cond: Condition, generator: Generator) -> float:
        """KL from the reference in nats per chunk, by finished chains with a condition each; see
        `diffusion.guards.forward_kl`."""
        rows = torch.linspace(0, len(chain.sample) - 1, min(KL_CHAINS, len(chain.sample))).long()
        return float(
            forward_kl(
                self.chains.predict,
                self.reference.predict,
                self.chains.forward,
                chain.sample[rows],
                take(cond, rows),
                streams(len(rows), generator),
                batch=MICRO_BATCH,
            ).mean()
        )

    def _begin(self) -> None:
        """Tuning begins from the average that cloning left, and that is the reference, too."""
        weights = self.base.average.state_dict()
        for policy in (self.base.policy, self.reference.policy):
            policy.load_state_dict(weights)
        if self.trained.anchor:
            for name, weight in self.chains.trainable().items():
                self.trained.anchor[name].copy_(weight.detach())

    def _checked(self, scores: Scored, rollouts: Rollouts) -> float:
        """The largest error of a ratio, which is 1 before any update.

        Raises:
            InputError: it is beyond the clip, or policy and reference differ before any update.
        """
        error = ratio_error(scores, rollouts, MICRO_BATCH)
        limit = self.config.clip / rollouts.dimensions
        if not error <= limit:
            raise InputError(
                f"scoring a denoising step again moves its log-prob by {error:.1e} per dimension, "
                f"more than the clip of {limit:.1e}: the clip would act on rounding. Raise --clip "
                f"above {10 * error * rollouts.dimensions:.0e}"
            )
        if self.trained.updates == 0:
            apart = (rollouts.log_prob_old - rollouts.log_prob_ref).abs().max()
            if not float(apart) <= max(limit, AGREES):
                raise InputError(
                    f"policy and reference differ by {float(apart):.1e} nats per dimension before "
                    "any update: is the policy's weights' file torn?"
                )
        return error

    def _zero_grad(self) -> None:
        self.trained.optimiser.zero_grad(set_to_none=True)

    def _require_finite(self, what: str, number: float) -> None:
        if not math.isfinite(number):
            raise Diverged(
                f"--agent {self.config.agent} diverged at optimiser step "
                f"{self.trained.updates + 1}: {what} became {number}. {LOWER}"
            )

    # -- a part of an agent

    def networks(self) -> list[nn.Module]:
        """The policy, its average and the reference."""
        return [*self.base.networks(), self.reference.policy]

    def state_dict(self) -> dict[str, Any]:
        """Policy, average, reference, optimiser, averages and what the objective remembers."""
        state: dict[str, Any] = {
            "base": self.base.state_dict(),
            "reference": self.reference.policy.state_dict(),
            "trained": self.trained.state(),
            "updates": self.trained.updates,
        }
        if hasattr(self.objective, "state_dict"):
            state["objective"] = self.objective.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned; training then goes on bit for bit."""
        self.base.load_state_dict(state["base"])
        self.reference.policy.load_state_dict(state["reference"])
        self.trained.load_state(dict(state["trained"]), int(state["updates"]))
        if hasattr(self.objective, "load_state_dict"):
            self.objective.load_state_dict(state["objective"])


def capped(reward: Tensor, beta: float, kl_cap: float) -> tuple[Tensor, float]:
    """Rewards (G, B) of which no group asks for more than a KL of `kl_cap` nats, and the share of
    groups that had to be scaled down.

    The optimum pi_ref exp(R / beta) is (std(R) / beta)^2 / 2 nats from pi_ref where R is normal.
    Where a critic is steep that is far beyond all that pi_ref ever draws, and so beyond what the
    critic has learnt from. K candidates hold steering to at most log K nats.
    """
    most = beta * math.sqrt(2 * kl_cap)
    factor = (most / reward.std(1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
    return reward * factor, float((factor < 1).float().mean())


def streams(count: int, generator: Generator) -> list[Generator]:
    """Random streams, one for each chain, that follow from one."""
    seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    return [Generator().manual_seed(seed) for seed in seeds]


def finetune_settings(config: TrainConfig, dimensions: int) -> FinetuneConfig:
    """What `diffusion` needs to know: the objective in its units, and the optimiser.

    PRDP, RTB and their like take nats as they are. A PPO ratio there is that of the mean over the D
    dimensions, of which a clip in nats of the whole chunk is 1 - exp(-clip / D).
    """
    ratio = config.agent in ("ddpo", "grpo", "awm")
    held = 1.0 if config.kl_weight is None else config.kl_weight
    return FinetuneConfig(
        algorithm=config.agent,
        beta=config.beta,
        clip=-math.expm1(-config.clip / dimensions) if ratio else config.clip,
        unit="nats",
        kl_weight=held,
        draws=config.draws,
        loss_weight=config.loss_weight,
        mix=config.mix,
        inner_steps=config.inner_steps,
        learning_rate=config.base_lr,
        weight_decay=0.0,
        max_grad_norm=MAX_GRAD_NORM,
    )
