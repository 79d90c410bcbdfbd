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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from diffusion.chain import Condition
from diffusion.config import FinetuneConfig
from diffusion.drawing import Dealt, Stopped, Tick, deal
from diffusion.errors import InputError
from diffusion.evaluating import Held
from diffusion.finetune import Finetuner
from diffusion.fitting import found
from diffusion.measures import Evaluation, peak_memory_mb
from diffusion.objective import Rollouts
from diffusion.objectives.dpo import DPO, accuracy
from diffusion.pipelines import ImagePolicy
from diffusion.preferences.pair import Pair, batched
from diffusion.preferences.source import PairSource
from diffusion.ranks import Ranks
from diffusion.rewards.callables import RewardFn
from diffusion.streams import JUDGING

JUDGING_DRAWS = 8  # of (t, eps) for each held-out pair
PAIRS_AT_ONCE = 16  # where --rollout-batch does not say; their images are in the machine's memory


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
        *,
        ranks: Ranks | None = None,
        reward_ranks: Sequence[int] | None = None,
    ) -> None:
        asked = reward or _no_reward
        several = {"ranks": ranks, "reward_ranks": reward_ranks}
        super().__init__(policy, asked, pairs, config, gold, **several)  # type: ignore[arg-type]
        if not isinstance(self.objective, DPO):
            raise InputError(
                f"--algorithm {config.algorithm} learns from images that it draws and a reward, "
                "not from --pairs; that is what --algorithm dpo does"
            )
        self.rewarded = reward is not None

    def _epoch(self, tick: Tick | None) -> dict[str, float]:
        cfg, start = self.config, time.perf_counter()
        pairs = self.prompts.train_pairs(self.epoch, cfg.prompts_per_epoch, cfg.seed)
        with self.policy.at_guidance(1.0):
            dealt = deal(self.ranks, cfg.prompts_per_epoch, 2, whole=True)
            latents, cond = self.encoded(pairs, dealt, tick)
            read = time.perf_counter() - start
            group, reward = layout(cfg.prompts_per_epoch)
            scores, rollouts = self.scored_images(latents, cond, dealt, reward, group)
            metrics = self.take_steps(scores, rollouts)
        seconds = time.perf_counter() - start
        self.epoch += 1
        measured = {
            "train/images": float(self.epoch * len(group)),
            "time/epoch_seconds": seconds,
            "time/rollout_share": read / seconds,
            "time/images_per_second": len(group) / seconds,
            "memory/peak_mb": self.ranks.most(peak_memory_mb(self.policy.device)),
        }
        return metrics | measured | found(self.rollout_batch, self.micro_batch)

    @property
    def at_once(self) -> int:
        """Pairs that are encoded or judged together."""
        batch = self.rollout_batch
        return PAIRS_AT_ONCE if batch.auto else max(1, batch.size // 2)

    def encoded(
        self, pairs: Iterable[Pair], dealt: Dealt, tick: Tick | None = None
    ) -> tuple[Tensor, Condition]:
        """Latents (2 P, ...), the chosen image of each pair before the rejected one, and the
        conditioning of its P prompts: of the pairs that this process holds."""
        parts: list[Tensor] = []
        size, times = self.policy.family.image_size, Counter((dealt.share.held[::2] // 2).tolist())
        prompts: dict[int, str] = {}

        def mine() -> Iterator[Pair]:
            for i, pair in enumerate(pairs):
                if i in times:
                    prompts[i] = pair.prompt
                    yield from [pair] * times[i]  # more than once where it pads

        for some in batched(mine(), self.at_once):
            images = torch.cat([pair.images(size) for pair in some])
            parts.append(self.policy.encode_images(images))
            if tick is not None and tick():
                raise Stopped
        return torch.cat(parts), self.policy.encode(list(prompts.values()))

    def judge(self, count: int, weights: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """The implicit accuracy and margin on `count` held-out pairs, at the same draws every time.

        A policy that is the reference has margins of 0 alone, so its accuracy is 0.5.
        """
        margins: list[Tensor] = []
        cfg, ranks = self.config, self.ranks
        with self.policy.at_guidance(1.0), self.in_place(weights):
            pairs = self.prompts.held_out_pairs(count, cfg.seed)
            for some in batched(pairs, self.at_once * ranks.count):
                dealt = deal(ranks, len(some), 2, whole=True)
                latents, cond = self.encoded(some, dealt)
                group, reward = layout(len(some))
                scores = self.forward_scores(
                    latents, cond, dealt, JUDGING_DRAWS, JUDGING, 0, first=sum(map(len, margins))
                )
                table = scores.table(self.policy.predict, self.micro_batch)
                other = scores.reference_table(self.policy, self.micro_batch)
                even = torch.full((JUDGING_DRAWS,), 1 / JUDGING_DRAWS, dtype=torch.float64)
                seen = Rollouts(table, other, reward, group, even, latents[0].numel())
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
        held, measures = self.drawn(count, weights)
        return Evaluation(held.pictures(), held.prompts, self.judged(held), measures | judged)

    def judged(self, held: Held) -> dict[str, Tensor]:
        """What every reward says, each (n,); without a reward to train on, the gold ones."""
        if self.rewarded:
            return super().judged(held)
        return {name: self.ask(name, held).raw for name in self.gold}


def layout(pairs: int) -> tuple[Tensor, Tensor]:
    """Group (2 P,) and reward (2 P,) of P pairs of a chosen and a rejected image."""
    group = torch.arange(pairs).repeat_interleave(2)
    return group, torch.tensor([1.0, 0.0]).repeat(pairs)


def _no_reward(images: Tensor, prompts: list[str]) -> Tensor:
    raise InputError("there is no reward: pass --reward")
