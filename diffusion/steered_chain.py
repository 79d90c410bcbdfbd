"""Chains that a value steers while they are drawn: of K chains of each sample, those with a high
value go on.

At set steps every chain under way is valued, and a rule says which of them go on, and how often:

    pruning      the best n of them, so that what the others would have cost is saved
    resampling   copies in proportion to exp((V_now - V_before) / temperature)

Resampling is sequential Monte Carlo with the twist psi_t(x_t) = exp(V(x_t, t) / temperature)
(Wu et al. 2023, arXiv 2306.17775; Singhal et al. 2025, arXiv 2501.06848). Its weights are of the
*increment* of the value: what an earlier selection has counted is not counted again. The weights of
all selections of one chain then multiply to exp(V at the end / temperature), which is the tilt of

    pi(x_0) exp(R(x_0) / temperature)

where V at the end is R. This holds whatever V says on the way. There it decides only how few
chains carry the weight; the best is temperature log E[exp(R / temperature) | x_t], which the mean
E[R | x_t] approaches as the temperature grows.

A chain that goes on draws on from its own stream. A copy draws from the stream of a chain that
ended. So a chain that no copy was made into is the one that its generator alone draws, and copies
part at the next step that draws noise; without such a step they stay the same.

Nothing here knows of images. Shapes: N samples, K candidates of each, M chains under way, S stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from diffusion.chain import Condition, Predictor, draw
from diffusion.errors import InputError
from diffusion.process import ReverseProcess
from diffusion.scores import take

# values now and at the stage before (N, K), how many go on, a generator for each sample
# -> (N, n) which ones; in pruning each once
Keep = Callable[[Tensor, Tensor, int, Sequence[Generator]], Tensor]


class ChainValue(Protocol):
    """What a chain that has come so far is worth."""

    def __call__(self, x: Tensor, done: int, rows: Tensor, x0: Tensor | None) -> Tensor:
        """(M,) values; higher is better.

        Args:
            x: (M, ...) where the chains are.
            done: steps that they have taken: 0 is noise, T the finished sample.
            rows: (M,) the sample, and so the row of the conditioning, that each belongs to.
            x0: (M, ...) what the last step took for the finished sample; None before the first.
        """


@dataclass(frozen=True)
class Stage:
    """A selection, after `done` steps, of `keep` chains of each sample."""

    done: int
    keep: int


@dataclass(frozen=True)
class SteeredChains:
    """What was drawn.

    sample: (N, ...) the finished samples.
    candidate: (N,) whose noise it began with, of the K candidates.
    copied: (N,) bool, whether it was made by a copy somewhere, so that it is not the chain that the
        generator of `candidate` draws alone.
    values: (N, S) of the chain itself at each stage, NaN where nothing was asked.
    mean_values: (N, S) means over all chains that were there.
    value_calls: chains that were valued, all stages together.
    """

    sample: Tensor
    candidate: Tensor
    copied: Tensor
    values: Tensor
    mean_values: Tensor
    value_calls: int


def stage_at(remaining: float, num_steps: int) -> int:
    """Steps taken when at most this share of T steps remains: the least s with (T - s) / T <= it.

    1 is the noise before the first step, 0 the finished sample.
    """
    return math.ceil(round(num_steps * (1 - remaining), 6))


def pruning(remaining: Sequence[float], candidates: int, num_steps: int) -> list[Stage]:
    """Stages that leave one of K: after stage i of n about K^((n - i) / n) chains are left.

    8 candidates at three stages: 8 -> 4 -> 2 -> 1. Fewer remain at every stage than before.

    Args:
        remaining: the shares of the denoising that remain, falling, each in [0, 1].
        candidates: K.
        num_steps: T.

    Raises:
        InputError: shares that do not fall or are out of range, two that are the same step, or
            more stages than candidates to take away.
    """
    n = len(remaining)
    if n > candidates - 1:
        raise InputError(
            f"--prune-at has {n} stages, and {candidates} candidates can be pruned at most "
            f"{candidates - 1} times: leave stages out, or raise --num-candidates"
        )
    stages, left = [], candidates
    for i, done in enumerate(stage_steps(remaining, num_steps), 1):
        wanted = round(candidates ** ((n - i) / n))
        left = min(max(wanted, n - i + 1), left - 1)
        stages.append(Stage(done, left))
    return stages


def resampling(remaining: Sequence[float], candidates: int, process: ReverseProcess) -> list[Stage]:
    """Stages that resample K chains among themselves, and one at the end that draws one of them.

    Args:
        remaining: the shares of the denoising that remain, falling, each in [0, 1].
        candidates: K.
        process: which steps draw noise.

    Raises:
        InputError: as `pruning`; or no step after a stage draws noise, so copies would stay alike.
    """
    total = process.num_steps
    steps = [done for done in stage_steps(remaining, total) if done < total]
    for share, done in zip(remaining, steps, strict=False):
        if not bool((process.std[done:] > 0).any()):
            raise InputError(
                f"--resample needs noise after it: no step draws any where {share:g} remains, so "
                "copies would stay identical. Use --eta 1, --sampler cps for flow models, or prune"
            )
    return [*(Stage(done, candidates) for done in steps), Stage(total, 1)]


def stage_steps(remaining: Sequence[float], num_steps: int) -> list[int]:
    """The steps of shares that remain; see `pruning` for what is refused."""
    shares = " ".join(f"{share:g}" for share in remaining)
    if not remaining:
        raise InputError("--prune-at names no stage: give shares that remain, such as .7 .4 .2")
    if not all(0 <= share <= 1 for share in remaining):
        raise InputError(f"--prune-at {shares}: each is a share that remains, from 1 to 0")
    if any(b >= a for a, b in zip(remaining, remaining[1:], strict=False)):
        raise InputError(
            f"--prune-at {shares}: each share that remains must be less than the one before it, "
            "such as .7 .4 .2"
        )
    steps = [stage_at(share, num_steps) for share in remaining]
    if len(set(steps)) < len(steps):
        raise InputError(
            f"--prune-at {shares}: with {num_steps} denoising steps two of these are the same "
            "step. Put them further apart, or raise --num-inference-steps"
        )
    return steps


@torch.no_grad()
def steer_chains(
    predict: Predictor,
    process: ReverseProcess,
    cond: Condition,
    shape: Sequence[int],
    generators: Sequence[Sequence[Generator]],
    value: ChainValue,
    stages: Sequence[Stage],
    keep: Keep,
    *,
    batch: int,
    choosers: Sequence[Generator] | None = None,
    device: torch.device | str = "cpu",
    tick: Callable[[], None] | None = None,
) -> SteeredChains:
    """Draw one sample of each of N conditions out of K chains each.

    Without stages, and K = 1, it is `sample_chain` itself. What a sample is depends on its own
    generators only.

    Args:
        predict: the policy's network.
        process: of the scheduler.
        cond: a row for each sample.
        shape: of one x.
        generators: (N, K), one for each chain.
        value: what a chain under way is worth.
        stages: in the order of their steps; the last leaves one chain of each sample.
        keep: which chains go on.
        batch: chains that a network sees at a time. N K chains wait in memory.
        choosers: N, for rules that draw; they are left alone by rules that do not.
        device: where the networks compute.
        tick: called before every batch of a step; what it raises ends the drawing.

    Raises:
        ValueError: the last stage leaves more than one chain.
    """
    device, count, width = torch.device(device), len(generators), len(generators[0])
    if (stages[-1].keep if stages else width) != 1:
        raise ValueError("the last stage has to leave one chain of each sample")
    streams = [list(row) for row in generators]
    choosers = choosers or [Generator() for _ in streams]
    like = torch.empty(0, device=device)
    x, x0 = draw(shape, [g for row in streams for g in row], like), None
    candidate = torch.arange(width).repeat(count, 1)
    copied = torch.zeros(count, width, dtype=torch.bool)
    values = torch.full((count, width, len(stages)), math.nan)
    mean_values = torch.full((count, len(stages)), math.nan)
    due, calls = {stage.done: (i, stage.keep) for i, stage in enumerate(stages)}, 0
    for done in range(process.num_steps + 1):
        if done in due:
            i, left = due[done]
            rows = torch.arange(count, device=device).repeat_interleave(width)
            now = _valued(value, x, done, rows, x0, batch).view(count, width)
            calls += now.numel()
            before = values[:, :, i - 1] if i else torch.zeros_like(now)
            values[:, :, i], mean_values[:, i] = now, now.mean(1)
            chosen = keep(now, before, left, choosers).cpu()
            each = torch.arange(count)[:, None]
            x = x.view(count, width, *shape)[each, chosen].flatten(0, 1)
            candidate, values = candidate[each, chosen], values[each, chosen]
            streams, fresh = _streams(streams, chosen.tolist())
            copied, width = copied[each, chosen] | fresh, left
        if done == process.num_steps:
            break
        owner = torch.arange(count, device=device).repeat_interleave(width)
        wanted = done + 1 in due
        parts, ends = [], []
        for first in range(0, len(x), batch):
            if tick is not None:
                tick()
            some = slice(first, first + batch)
            step = torch.full((len(x[some]),), done, device=device)
            output = predict(x[some], process.timesteps_at(step), take(cond, owner[some]))
            parts.append(process.mean(output, x[some], step))
            if wanted:
                ends.append(process.x0_hat(output, x[some], step))
        x, x0 = torch.cat(parts), torch.cat(ends) if wanted else None
        if process.std[done] > 0:
            noise = draw(shape, [g for row in streams for g in row], like)
            x = x + process.std_at(torch.full((len(x),), done, device=device), x) * noise
    return SteeredChains(x, candidate[:, 0], copied[:, 0], values[:, 0], mean_values, calls)


def _valued(
    value: ChainValue, x: Tensor, done: int, rows: Tensor, x0: Tensor | None, batch: int
) -> Tensor:
    """(M,) float32 on the CPU, some at a time."""
    found = []
    for first in range(0, len(x), batch):
        some = slice(first, first + batch)
        found.append(value(x[some], done, rows[some], None if x0 is None else x0[some]))
    return torch.cat(found).float().cpu()


def _streams(
    streams: list[list[Generator]], chosen: list[list[int]]
) -> tuple[list[list[Generator]], Tensor]:
    """The streams of those that go on, and whether each is a further copy (N, n): the first of a
    chain keeps its stream, a further one takes that of a chain that ended."""
    kept, fresh = [], []
    for own, ones in zip(streams, chosen, strict=True):
        ended = iter([stream for k, stream in enumerate(own) if k not in ones])
        new = [k in ones[:i] for i, k in enumerate(ones)]
        kept.append([next(ended) if n else own[k] for n, k in zip(new, ones, strict=True)])
        fresh.append(new)
    return kept, torch.tensor(fresh)
