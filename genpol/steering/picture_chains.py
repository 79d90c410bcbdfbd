"""Pictures whose chains a value steers while they are drawn; the pipeline is a black box.

The chains are those of `diffusion/steered_chain.py`. Candidate k of picture i has the seed
`seed + i K + k`, as the candidates of a best of K have, and a picture depends on its own seeds
only.

Shapes: N pictures, K candidates, (3, H, W) a picture, S stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from diffusion.evaluations import Evaluations
from diffusion.pipelines import ImagePolicy
from diffusion.process import ReverseProcess
from diffusion.steered_chain import (
    Keep,
    Stage,
    SteeredChains,
    pruning,
    resampling,
    stage_at,
    steer_chains,
)
from diffusion.streams import STEERING, generators
from genpol.steering.keep import best, resampled
from genpol.steering.picture_values import PictureValues
from offline.errors import InputError

PRUNE_AT, CANDIDATES, TEMPERATURE = (0.7, 0.4, 0.2), 8, 0.3
HELD = 8  # latents that wait in memory for each one that the network sees at a time


@dataclass(frozen=True)
class Selection:
    """Which chains go on, and when.

    stages: of K candidates.
    keep: the rule.
    names: each stage as the share of the denoising that remains.
    """

    stages: list[Stage]
    keep: Keep
    names: list[str]


def selection(
    process: ReverseProcess,
    candidates: int,
    at: Sequence[float] | None = None,
    *,
    temperature: float | None = None,
) -> Selection:
    """Pruning at these shares of the denoising that remain; with a temperature, resampling there.

    Args:
        process: how pictures are drawn.
        candidates: K; 1 is the pipeline itself, whatever the rest says.
        at: falling shares, from 1 (noise) to 0 (finished). Default: `usual_shares`.
        temperature: of resampling, in standard deviations of the reward.

    Raises:
        InputError: shares that cannot be, too many for K, resampling without noise, or a negative
            temperature.
    """
    at = usual_shares(candidates, process.num_steps) if at is None else at
    if temperature is None:
        keep, stages = best(), pruning(at, candidates, process.num_steps) if candidates > 1 else []
    else:
        keep = resampled(temperature)
        stages = resampling(at, candidates, process) if candidates > 1 else []
    left = [1 - stage.done / process.num_steps for stage in stages]
    return Selection(stages, keep, [f"{share:.4g}" for share in left])


def usual_shares(candidates: int, num_steps: int) -> tuple[float, ...]:
    """Those of `PRUNE_AT` that are different steps of a short chain, as many of the first of them
    as K candidates can be pruned."""
    by_step: dict[int, float] = {}
    for share in PRUNE_AT:
        by_step.setdefault(stage_at(share, num_steps), share)
    return tuple(by_step.values())[: max(candidates - 1, 0)]


@dataclass(frozen=True)
class SteeredPictures:
    """What was drawn.

    images: (N, 3, H, W) float32 in [0, 1] on the CPU.
    seeds: (N,) the seed of each picture; of a pruned one, that of plain drawing.
    chains: how they came about.
    evaluations: images that the network has seen for all N, counted.
    """

    images: Tensor
    seeds: list[int]
    chains: SteeredChains
    evaluations: int


class PictureChains:
    """Draws pictures by chains that a value steers.

    Args:
        policy: the pipeline.
        process: how it is sampled.
        values: what steers.
        candidates: K chains of each picture.
        how: which go on; see `selection`.
        batch: chains that the network sees at a time.

    Attributes:
        at_once: pictures that fit into memory together.

    Raises:
        InputError: a value is of another pipeline.
    """

    def __init__(
        self,
        policy: ImagePolicy,
        process: ReverseProcess,
        values: PictureValues,
        candidates: int,
        how: Selection,
        *,
        batch: int,
    ) -> None:
        values.require_fits(policy)
        if candidates < 1:
            raise InputError(f"expected at least 1 candidate, received {candidates}")
        self.policy, self.process, self.values = policy, process, values
        self.candidates, self.how, self.batch = candidates, how, batch
        self.at_once = max(1, min(batch, HELD * batch // candidates))

    def draw(
        self, prompts: list[str], seed: int, tick: Callable[[], None] | None = None
    ) -> SteeredPictures:
        """One picture of each of N prompts; N is at most `at_once` for memory's sake.

        Args:
            prompts: N.
            seed: of the first candidate of the first picture.
            tick: called before every pass of the network; what it raises ends the drawing.

        Raises:
            InputError: the value is of other text encoders, or NaN.
        """
        policy, k = self.policy, self.candidates
        cond = policy.encode(prompts)
        seeds = [[seed + i * k + c for c in range(k)] for i in range(len(prompts))]
        with Evaluations(policy.denoiser) as seen:
            chains = steer_chains(
                policy.predict,
                self.process,
                cond,
                policy.latent_shape,
                [[Generator().manual_seed(s) for s in row] for row in seeds],
                self.values.of(prompts, cond, self.process),
                self.how.stages,
                self.how.keep,
                batch=self.batch,
                choosers=[generators(row[0], STEERING, 0, [0])[0] for row in seeds],
                device=policy.device,
                tick=tick,
            )
        ones = [row[c] for row, c in zip(seeds, chains.candidate.tolist(), strict=True)]
        return SteeredPictures(policy.decode(chains.sample), ones, chains, seen.count)

    def draw_all(
        self, prompts: list[str], seed: int, tick: Callable[[], None] | None = None
    ) -> SteeredPictures:
        """The same of any number of prompts, `at_once` at a time."""
        size, k = self.at_once, self.candidates
        parts = [
            self.draw(prompts[i : i + size], seed + i * k, tick)
            for i in range(0, len(prompts), size)
        ]
        return joined(parts)


def joined(parts: Sequence[SteeredPictures]) -> SteeredPictures:
    """Pictures that were drawn some at a time, in order."""

    drawn = [part.chains for part in parts]
    chains = SteeredChains(
        sample=torch.cat([one.sample for one in drawn]),
        candidate=torch.cat([one.candidate for one in drawn]),
        copied=torch.cat([one.copied for one in drawn]),
        values=torch.cat([one.values for one in drawn]),
        mean_values=torch.cat([one.mean_values for one in drawn]),
        value_calls=sum(one.value_calls for one in drawn),
    )
    return SteeredPictures(
        torch.cat([part.images for part in parts]),
        [seed for part in parts for seed in part.seeds],
        chains,
        sum(part.evaluations for part in parts),
    )
