"""The reward fine-tuning loop: draw images, reward them, take K exact-gradient steps.

One epoch:
    1. N prompts, B chains each, with log-probs under the current weights and the reference
    2. decode, reward -> (N B,)
    3. K times: objective -> dL/d log-prob -> two-pass backward -> AdamW

Everything random is a function of (seed, purpose, epoch, index), so a resumed run needs no RNG
state and draws the same images whatever the batch sizes are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from diffusion.chain import Condition, Predictor
from diffusion.config import FinetuneConfig
from diffusion.drawing import Dealt, Drawing, Drawn, Stopped, Tick, scored_as_drawn
from diffusion.errors import Diverged
from diffusion.evaluating import Held, diversity, draw_held_out
from diffusion.fitting import Fitting, found
from diffusion.forward import draw_times, forward_process
from diffusion.guards.filtering import best_and_worst
from diffusion.guards.forward_kl import epoch_kl
from diffusion.guards.kl_target import kl_target, weight_of, with_weight
from diffusion.judging import Judges
from diffusion.measures import Evaluation, peak_memory_mb, reward_statistics
from diffusion.objective import ForwardObjective, Objective, Rollouts, step_weights
from diffusion.objectives.make import make_objective
from diffusion.pipelines import ImagePolicy
from diffusion.process import ReverseProcess
from diffusion.prompts.sources import PromptSource
from diffusion.ranks import Ranks
from diffusion.rewards.callables import RewardFn
from diffusion.rewards.reward import Judgement, as_reward
from diffusion.scores import ChainScores, ForwardScores, probe, ratio_error
from diffusion.streams import DRAWS, ROLLOUT, generators
from diffusion.trained_weights import SwapWeights, TrainedWeights
from diffusion.two_pass import Backward, two_pass_backward

__all__ = ["Finetuner", "Stopped"]


class Finetuner:
    """A policy, a reward and prompts, trained epoch by epoch.

    `gold` are rewards that are only ever evaluated, never trained on. `config` is resolved: no
    None where a number is needed. `objective` replaces the one that `config.algorithm` names.

    In a run of several processes each makes a tuner of the same arguments but for `ranks`, and
    calls the same methods of it; all get the same numbers. `reward_ranks` are the processes that
    ask rewards, all by default; others never call theirs.
    """

    def __init__(
        self,
        policy: ImagePolicy,
        reward: RewardFn,
        prompts: PromptSource,
        config: FinetuneConfig,
        gold: Mapping[str, RewardFn] | None = None,
        objective: Objective | None = None,
        *,
        ranks: Ranks | None = None,
        reward_ranks: Sequence[int] | None = None,
    ) -> None:
        self.policy, self.prompts, self.config = policy, prompts, config
        self.ranks = ranks or Ranks()
        self.judges = Judges(self.ranks, tuple(reward_ranks or range(self.ranks.count)))
        asked = as_reward(reward, "reward", device=policy.device)
        golden = {k: as_reward(v, k, device=policy.device) for k, v in (gold or {}).items()}
        self._whole = self.judges.whole({"reward": asked, **golden})
        self.reward: RewardFn = policy.offload.reward(asked)
        self.gold = {name: policy.offload.reward(one) for name, one in golden.items()}
        sizes = policy.device, self.ranks
        split = policy.sharding is not None
        self.rollout_batch = Fitting.of(config, "rollout_batch", *sizes, split=split)
        self.micro_batch = Fitting.of(config, "micro_batch", *sizes, split=split)
        self.objective: Objective = objective or make_objective(config)
        self.kl_target = kl_target(config, self.objective)
        self.forward = hasattr(self.objective, "terms")
        """Whether the objective is one on the forward process: it needs finished images only."""
        self.process = self.process_of(0)
        if self.forward:
            draws = self.objective.draws  # type: ignore[attr-defined]
            self.weights = torch.full((draws,), 1 / draws, dtype=torch.float64)
        else:
            self.weights = step_weights(self.process, config.step_weights)
        follows = getattr(self.objective, "anchor", False)
        decay = self.objective.decay if follows else None  # type: ignore[attr-defined]
        self.trained = TrainedWeights(policy.trainable(), config, decay, self.require_finite)
        self.backward: Backward = torch.Tensor.backward  # what a bench wants timed
        self.epoch = 0

    rewarded = True  # whether there is a reward to train on

    @property
    def evaluated(self) -> list[str]:
        """The rewards that an evaluation scores by, those that are only evaluated last."""
        return [*(["reward"] if self.rewarded else []), *self.gold]

    @property
    def reward_calls(self) -> int:
        """Images that training has asked the reward about so far."""
        return self.epoch * self.config.prompts_per_epoch * self.config.images_per_prompt

    # -- drawing ----------------------------------------------------------------------------------

    @property
    def drawing(self) -> Drawing:
        """How it draws."""
        return Drawing(self.policy, self.config, self.ranks, self.rollout_batch)

    def process_of(self, epoch: int) -> ReverseProcess:
        """How the images of an epoch are drawn."""
        return self.drawing.process_of(epoch)

    def draw(
        self,
        prompts: list[str],
        copies: int,
        purpose: int,
        epoch: int,
        *,
        reference: bool,
        process: ReverseProcess | None = None,
        predict: Predictor | None = None,
        tick: Tick | None = None,
        path: bool = True,
    ) -> Drawn:
        """Chains of every prompt `copies` times (prompt-major), with the prompts' conditioning.

        `process` replaces the epoch's, and `predict` the current weights. `tick` is called between
        batches; when it returns True, Stopped is raised. `path` says whether every x is kept, or
        the sample alone.
        """
        policy = self.policy
        # Before the first update a frozen copy is the trained network, which need not say so to
        # the last bit in half precision: kernels may round differently for the two.
        same = reference and self.trained.updates == 0 and self.config.train == "full"
        drawn = self.drawing.draw(
            prompts,
            copies,
            purpose,
            epoch,
            process or self.process,
            predict=predict or policy.predict,
            reference=policy.predict_reference if reference and not same else None,
            tick=tick,
            path=path,
        )
        return replace(drawn, chain=scored_as_drawn(drawn.chain)) if same else drawn

    def evaluate(self, count: int, weights: Mapping[str, Tensor] | None = None) -> Evaluation:
        """One image of each of `count` held-out prompts, fixed seeds, scored by every reward.

        `weights` stand in for the trained ones by name.
        """
        held, measures = self.drawn(count, weights)
        return Evaluation(held.pictures(), held.prompts, self.judged(held), measures)

    def judged(self, held: Held) -> dict[str, Tensor]:
        """What every reward says of images of held-out prompts, each (n,)."""
        found = self.ask("reward", held)
        rewards = {"reward": found.raw} | found.columns()
        return rewards | {name: self.ask(name, held).raw for name in self.gold}

    def ask(self, name: str, held: Held, group: Tensor | None = None) -> Judgement:
        """What one reward says of held-out images; without groups (n,), each stands by itself."""
        reward = self.reward if name == "reward" else self.gold[name]
        group = torch.arange(len(held.prompts)) if group is None else group
        whole = self._whole[name]
        return self.judges(reward, held.images, held.share, held.prompts, group, whole=whole)

    def drawn(
        self, count: int, weights: Mapping[str, Tensor] | None = None
    ) -> tuple[Held, dict[str, float]]:
        """One image of each of `count` held-out prompts, the same seeds every time; and measures
        of the policy by them."""
        prompts = self.prompts.held_out(count, self.config.seed)
        with self.in_place(weights):
            return draw_held_out(self.drawing, prompts)

    def in_place(self, weights: Mapping[str, Tensor] | None) -> SwapWeights:
        """Within this context `weights` are in place, or else the average, where there is one."""
        average = self.trained.averaged()
        return SwapWeights(self.trained.parameters, dict(weights)) if weights else average

    # -- one epoch --------------------------------------------------------------------------------

    def run_epoch(self, tick: Tick | None = None) -> dict[str, float]:
        """Advance one epoch and return its metrics (documented in docs/metrics.md)."""
        rate = self.config.lora_dropout  # what it leaves out is left out in the whole epoch
        with self.policy.thinned(rate, self.config.seed, self.epoch) if rate else nullcontext():
            return self._epoch(tick)

    def _epoch(self, tick: Tick | None) -> dict[str, float]:
        cfg, policy, start = self.config, self.policy, time.perf_counter()
        copies = cfg.images_per_prompt
        prompts = self.prompts.train(self.epoch, cfg.prompts_per_epoch, cfg.seed)
        self.process = self.process_of(self.epoch)
        if not self.forward:
            self.weights = step_weights(self.process, cfg.step_weights)
        by_anchor = getattr(self.objective, "drawn_by_anchor", False)
        with self.trained.anchored() if by_anchor else nullcontext():
            drawn = self.draw(
                prompts,
                copies,
                ROLLOUT,
                self.epoch,
                reference=not self.forward,
                tick=tick,
                path=not self.forward,
            )
        chain, share = drawn.chain, drawn.share
        images = policy.decode(chain.sample.float())
        group = torch.arange(len(prompts)).repeat_interleave(copies)
        each = [prompts[g] for g in group.tolist()]
        judged = self.judges(self.reward, images, share, each, group, whole=self._whole["reward"])
        reward = judged.total
        rolled_out = time.perf_counter() - start
        metrics = {
            "kl/forward": epoch_kl(
                policy,
                chain.sample,
                drawn.cond,
                drawn.dealt.group,
                cfg.seed,
                self.epoch,
                self.rollout_batch,
                share,
            ),
            "diversity/within_group": diversity(images, share, group),
        }
        if cfg.filter is None:
            scores, rollouts = self.scored(drawn, reward, group)
            rollouts = self.prepared(rollouts, each)
        else:
            scores, rollouts = self.filtered(drawn, reward, group, each)
            metrics["filter/kept"] = len(rollouts.reward) / len(group)
        if not self.forward:
            metrics["check/ratio_error"] = ratio_error(scores, rollouts, self.micro_batch)
        inner = self.take_steps(scores, rollouts)
        if self.kl_target is not None:
            metrics["kl/beta"] = weight_of(self.objective)
            self.objective = self.kl_target.adapted(self.objective, metrics["kl/forward"])
        seconds = time.perf_counter() - start
        self.epoch += 1
        metrics |= inner | reward_statistics(judged.raw) | judged.means()
        if chain.kl is not None:
            kl = share.gather(chain.kl.cpu())[:, self.process.stochastic].double()
            metrics["kl/per_dim"] = float(kl.mean())
            metrics["kl/nats"] = float(kl.sum(1).mean() * chain.dimensions)
        metrics |= {
            "train/images": float(self.epoch * len(group)),
            "time/epoch_seconds": seconds,
            "time/rollout_share": rolled_out / seconds,
            "time/images_per_second": len(group) / seconds,
            "memory/peak_mb": self.ranks.most(peak_memory_mb(self.policy.device)),
        }
        return metrics | found(self.rollout_batch, self.micro_batch)

    def take_steps(
        self, scores: ChainScores | ForwardScores, rollouts: Rollouts
    ) -> dict[str, float]:
        """K optimiser steps on an epoch's images; the objective's metrics at the last of them."""
        cfg, norms = self.config, []

        def restart() -> None:
            self.trained.optimiser.zero_grad(set_to_none=True)

        for k in range(cfg.inner_steps):
            restart()
            metrics = two_pass_backward(
                scores.score,
                self.objective,
                rollouts,
                self.micro_batch,
                # Before the first step the current weights are the ones that drew the images.
                current=scores.at_rollout(rollouts) if k == 0 else None,
                backward=self.backward,
                share=scores.share,
                ahead=scores.ahead,
                restart=restart,
            )
            self.ranks.sum_gradients(self.trained.parameters.values())
            norms.append(self.trained.step())
        with torch.no_grad():  # weights may be finite and what the network says may not
            said = probe(scores, rollouts, 4, self.micro_batch)[0]
            self.require_finite("what the network says", float(said.abs().max()))
        return metrics | {
            "train/gradient_norm": float(np.mean(norms)),
            "train/learning_rate": self.trained.rate,
        }

    def prepared(self, rollouts: Rollouts, prompts: list[str]) -> Rollouts:
        """With what the objective makes of an epoch's rewards, where it makes something."""
        prepare = getattr(self.objective, "prepare", None)
        return rollouts if prepare is None else prepare(rollouts, prompts)

    def filtered(
        self, drawn: Drawn, reward: Tensor, group: Tensor, prompts: list[str]
    ) -> tuple[ChainScores | ForwardScores, Rollouts]:
        """`scored` and `prepared`, the second by all images and the first of those that are kept.

        Log-probs that `prepare` sees are 0 for objectives on finished images.
        """
        zeros = torch.zeros(len(group), len(self.weights))
        old, ref = drawn.chain.log_prob, drawn.chain.log_prob_ref
        tables = (zeros, zeros)
        if not self.forward and ref is not None:
            tables = (drawn.share.gather(old.cpu()), drawn.share.gather(ref.cpu()))
        whole = Rollouts(*tables, reward, group, self.weights, drawn.chain.dimensions)
        whole = self.prepared(whole, prompts)
        keep = best_and_worst(reward, group, self.config.filter_keep)
        scores, rollouts = self.scored(drawn.kept(keep), whole.reward[keep], group[keep])
        if whole.advantage is not None:
            rollouts = replace(rollouts, advantage=whole.advantage[keep])
        return scores, rollouts

    def scored(
        self, drawn: Drawn, reward: Tensor, group: Tensor
    ) -> tuple[ChainScores | ForwardScores, Rollouts]:
        """How an epoch's images are scored again, and what the objective sees of them."""
        policy, chain, share = self.policy, drawn.chain, drawn.share
        if self.forward:
            return self.scored_images(chain.sample, drawn.cond, drawn.dealt, reward, group)
        assert chain.log_prob_ref is not None
        scores = ChainScores(
            policy.predict,
            policy.predict_reference,
            self.process,
            chain,
            drawn.cond,
            drawn.dealt.group,
            getattr(self.objective, "channels", ("log_prob",)),
            share,
            policy.as_reference,
        )
        return scores, Rollouts(
            log_prob_old=share.gather(chain.log_prob.cpu()),
            log_prob_ref=share.gather(chain.log_prob_ref.cpu()),
            reward=reward,
            group=group,
            step_weight=self.weights,
            dimensions=chain.dimensions,
        )

    def scored_images(
        self, sample: Tensor, cond: Condition, dealt: Dealt, reward: Tensor, group: Tensor
    ) -> tuple[ForwardScores, Rollouts]:
        """The same for an objective on the forward process, of finished latents (H, ...)."""
        policy, objective = self.policy, cast(ForwardObjective, self.objective)
        scores = self.forward_scores(sample, cond, dealt, objective.draws, DRAWS, self.epoch)
        old = reference = torch.zeros(len(group), objective.draws)
        if not objective.linear:
            table = scores.table(policy.predict, self.micro_batch)
            other = scores.reference_table(policy, self.micro_batch)
            old, reference = (v if v.ndim == 2 else v[..., 0] for v in (table, other))
            scores = replace(scores, rollout_table=table)
        return scores, Rollouts(old, reference, reward, group, self.weights, sample[0].numel())

    def forward_scores(
        self,
        sample: Tensor,
        cond: Condition,
        dealt: Dealt,
        draws: int,
        purpose: int,
        epoch: int,
        first: int = 0,
    ) -> ForwardScores:
        """The objective's terms of latents (H, ...), at `draws` times and noises of each prompt,
        of which the first is number `first` of the epoch."""
        objective = cast(ForwardObjective, self.objective)
        process = forward_process(self.policy.pipe.scheduler)
        policy, streams = self.policy, []
        for prompt in dealt.prompts.tolist():
            which = range((first + prompt) * draws, (first + prompt + 1) * draws)
            streams.append(generators(self.config.seed, purpose, epoch, which))
        shared = draw_times(process, policy.latent_shape, streams, policy.device)
        asks = getattr(objective, "needs_reference", False)
        return ForwardScores(
            objective,
            process,
            policy.predict,
            sample,
            shared,
            cond,
            dealt.group,
            policy.predict if objective.anchor else None,
            policy.predict_reference if asks else None,
            share=dealt.share,
            anchor_weights=self.trained.anchored,
            reference_weights=policy.as_reference,
        )

    def require_finite(self, what: str, number: float) -> None:
        """Raise Diverged for a number of this step that is NaN or infinite."""
        if math.isfinite(number):
            return
        half = torch.float16 in (self.policy.autocast_dtype, self.policy.denoiser.dtype)
        other = ", or use bf16 instead of fp16" if half else ""
        raise Diverged(
            f"fine-tuning diverged in epoch {self.epoch + 1}, at step {self.trained.updates + 1}: "
            f"{what} became {number}. Lower --learning-rate, or scale the reward down{other}"
        )

    # -- state ------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Everything a resumed run needs: tensors, and JSON-able values."""
        values: dict = {"epoch": self.epoch, "updates": self.trained.updates}
        if hasattr(self.objective, "state_dict"):
            values["objective"] = self.objective.state_dict()
        if self.kl_target is not None:
            values["kl_beta"] = weight_of(self.objective)
        return self.trained.state(), values

    def load_state(self, tensors: dict[str, Tensor], values: dict) -> None:
        """Restore `state()`; raises InputError when it belongs to other weights."""
        self.trained.load_state(tensors, values["updates"])
        if hasattr(self.objective, "load_state_dict"):
            self.objective.load_state_dict(values["objective"])
        if self.kl_target is not None:
            self.objective = with_weight(self.objective, values["kl_beta"])
        self.epoch = values["epoch"]
