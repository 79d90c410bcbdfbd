"""Learning from files of preferences: pairs of images in place of drawing and reward.

One epoch:
    1. N pairs; the autoencoder makes latents of their images
    2. K times: the objective at draws of (t, eps) that a pair shares -> two-pass backward -> AdamW

Training is without guidance, as the pipeline itself was trained; --guidance-scale is for the images
that evaluations draw. Where a network is told the image's sizes (SDXL), it is told those that it is
told when it draws. Evaluations measure the implicit accuracy on held-out pairs, and draw images
where there is a reward to score them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor

from diffusion.chain import Condition
from diffusion.config import FinetuneConfig
from diffusion.errors import InputError
from diffusion.finetune import Finetuner, Stopped
from diffusion.measures import Evaluation, peak_memory_mb
from diffusion.objective import Rollouts
from diffusion.objectives.dpo import DPO, accuracy
from diffusion.pipelines import ImagePolicy
from diffusion.preferences.pair import Pair, batched
from diffusion.preferences.source import PairSource
from diffusion.rewards.callables import RewardFn
from diffusion.rewards.reward import judge
from diffusion.streams import JUDGING
from diffusion.trained_weights import SwapWeights

JUDGING_DRAWS = 8  # of (t, eps) for each held-out pair


class PreferenceTuner(Finetuner):
    """A policy trained on the pairs of a `PairSource` by DPO.

    `reward` may be None: evaluations then draw images only for `gold`. An epoch is
    `config.prompts_per_epoch` pairs.

    Raises:
        InputError: the objective learns from something else than pairs.
    """

    prompts: PairSource

    def __init__(
        self,
        policy: ImagePolicy,
        reward: RewardFn | None,
        pairs: PairSource,
        config: FinetuneConfig,
        gold: Mapping[str, RewardFn] | None = None,
    ) -> None:
        super().__init__(policy, reward or _no_reward, pairs, config, gold)
        if not isinstance(self.objective, DPO):
            raise InputError(
                f"--algorithm {config.algorithm} learns from images that it draws and a reward, "
                "not from --pairs; that is what --algorithm dpo does"
            )
        self.rewarded = reward is not None

    def _epoch(self, tick: Callable[[], bool] | None) -> dict[str, float]:
        cfg, start = self.config, time.perf_counter()
        pairs = self.prompts.train_pairs(self.epoch, cfg.prompts_per_epoch, cfg.seed)
        with self.policy.at_guidance(1.0):
            latents, cond = self.encoded(pairs, tick)
            read = time.perf_counter() - start
            group, reward = layout(len(latents) // 2)
            scores, rollouts = self.scored_images(latents, cond, reward, group)
            metrics = self.take_steps(scores, rollouts)
        seconds = time.perf_counter() - start
        self.epoch += 1
        return metrics | {
            "train/images": float(self.epoch * len(latents)),
            "time/epoch_seconds": seconds,
            "time/rollout_share": read / seconds,
            "time/images_per_second": len(latents) / seconds,
            "memory/peak_mb": peak_memory_mb(self.policy.device),
        }

    def encoded(
        self, pairs: Iterable[Pair], tick: Callable[[], bool] | None = None
    ) -> tuple[Tensor, Condition]:
        """Latents (2 P, ...), the chosen image of each pair before the rejected one, and the
        conditioning of its P prompts."""
        parts: list[Tensor] = []
        prompts: list[str] = []
        size = self.policy.family.image_size
        for some in batched(pairs, max(1, self.config.rollout_batch // 2)):
            images = torch.cat([pair.images(size) for pair in some])
            parts.append(self.policy.encode_images(images))
            prompts += [pair.prompt for pair in some]
            if tick is not None and tick():
                raise Stopped
        return torch.cat(parts), self.policy.encode(prompts)

    def judge(self, count: int, weights: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """The implicit accuracy and margin on `count` held-out pairs, at the same draws every time.

        A policy that is the reference has margins of 0 alone, so its accuracy is 0.5.
        """
        margins: list[Tensor] = []
        cfg = self.config
        average = self.trained.averaged()
        swapped = SwapWeights(self.trained.parameters, dict(weights)) if weights else average
        with self.policy.at_guidance(1.0), swapped:
            pairs = self.prompts.held_out_pairs(count, cfg.seed)
            for some in batched(pairs, max(1, cfg.rollout_batch // 2)):
                latents, cond = self.encoded(some)
                group, reward = layout(len(some))
                scores = self.forward_scores(
                    latents, cond, group, JUDGING_DRAWS, JUDGING, 0, first=sum(map(len, margins))
                )
                table = scores.table(self.policy.predict, cfg.micro_batch)
                other = scores.table(self.policy.predict_reference, cfg.micro_batch)
                weights = torch.full((JUDGING_DRAWS,), 1 / JUDGING_DRAWS, dtype=torch.float64)
                seen = Rollouts(table, other, reward, group, weights, latents[0].numel())
                margins.append(cast(DPO, self.objective).margins(table, seen))
        margin = torch.cat(margins)
        self.require_finite("a margin of held-out pairs", float(margin.abs().max()))
        return {
            "implicit_accuracy": accuracy(margin),
            "implicit_margin": float(margin.mean()),
            "pairs": float(len(margin)),
        }

    @property
    def reward_calls(self) -> int:
        """None: the pairs are judged already."""
        return 0

    def evaluate(self, count: int, weights: Mapping[str, Tensor] | None = None) -> Evaluation:
        """`judge` on `count` pairs; with a reward or a gold reward, also images of held-out
        prompts, scored. `weights` stand in for the trained ones by name."""
        judged = self.judge(count, weights)
        if not self.rewarded and not self.gold:
            return Evaluation(torch.zeros(0, 3, *self.policy.family.image_size), [], {}, judged)
        images, prompts, measures = self.drawn(count, weights)
        rewards = self.judged(images, prompts)
        return Evaluation(images, prompts, rewards, measures | judged)

    def judged(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """What every reward says, each (n,); without a reward to train on, the gold ones."""
        if self.rewarded:
            return super().judged(images, prompts)
        alone = torch.arange(len(prompts))
        return {k: judge(f, images, prompts, alone).raw for k, f in self.gold.items()}


def layout(pairs: int) -> tuple[Tensor, Tensor]:
    """Group (2 P,) and reward (2 P,) of P pairs of a chosen and a rejected image."""
    group = torch.arange(pairs).repeat_interleave(2)
    return group, torch.tensor([1.0, 0.0]).repeat(pairs)


def _no_reward(images: Tensor, prompts: list[str]) -> Tensor:
    raise InputError("there is no reward: pass --reward")
