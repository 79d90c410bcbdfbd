"""What a value learns from: states of the chains that a pipeline draws, and their final rewards.

A round is a few prompts, B images of each. Every draw is a function of (seed, purpose, image), so a
round that is lost is drawn again, the same. States wait in bf16.

An image is also judged against O other prompts, which needs no drawing. That teaches what a prompt
has to do with an image. On the shipped pipelines it is worth more than several times the images.

Shapes: N prompts, B images of each, S states of a chain, latents (C, h, w), T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from diffusion.chain import Condition, DenoisingChain, sample_chain
from diffusion.fitting import Fitting
from diffusion.pipelines import ImagePolicy
from diffusion.process import ReverseProcess
from diffusion.rewards.reward import RewardFn, judge
from diffusion.scores import take
from diffusion.streams import VALUE_OTHERS, VALUE_STATES, generators

STORED = torch.bfloat16


@dataclass(frozen=True)
class Examples:
    """States of chains.

    Attributes:
        x: (N, B, S, C, h, w) in bf16.
        x0_hat: the same of the prediction of x_0 by the step before; zeros before the first step.
        step: (N, S) int64, how many steps led to each state: 0 to T.
        reward: (N, B) float32 of the finished images.
        other: (N, B, O) int64, other prompts that each image was judged against, by number.
        other_reward: (N, B, O) what they made of it.
    """

    x: Tensor
    x0_hat: Tensor
    step: Tensor
    reward: Tensor
    other: Tensor
    other_reward: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def without_others(self) -> Examples:
        """The same, judged against no other prompts."""
        return replace(self, other=self.other[:, :, :0], other_reward=self.other_reward[:, :, :0])

    @staticmethod
    def joined(parts: Sequence[Examples]) -> Examples:
        """Those of several rounds."""
        names = [f.name for f in fields(Examples)]
        return Examples(**{n: torch.cat([getattr(part, n) for part in parts]) for n in names})


def states_of(steps: int, wanted: int, seed: int, prompts: Sequence[int] | None = None) -> Tensor:
    """Which states of a chain of T `steps` are kept: (N, S), each row ascending from 0 to T.

    All T + 1 where `wanted` is as many. Else the last one, and one of each of S - 1 equal parts of
    the others: the first one of the part (held-out prompts, `prompts` None, one row), or one drawn
    for each of `prompts`, so that together they cover the chain.
    """
    if wanted > steps:
        return torch.arange(steps + 1).expand(1 if prompts is None else len(prompts), -1).clone()
    edges = np.linspace(0, steps, wanted)  # S - 1 parts of the states 0 .. T - 1
    rows = []
    for prompt in [None] if prompts is None else prompts:
        drawn = (
            np.zeros(wanted - 1)
            if prompt is None
            else np.random.default_rng([seed, VALUE_STATES, prompt]).random(wanted - 1)
        )
        first, last = np.ceil(edges[:-1] - 1e-9), np.ceil(edges[1:] - 1e-9)
        rows.append([*(first + np.floor(drawn * (last - first))), steps])
    return torch.tensor(np.array(rows), dtype=torch.long)


def others_of(images: int, wanted: int, total: int, seed: int, prompts: Sequence[int]) -> Tensor:
    """(N, B, O) int64: which of the other prompts each of B `images` of each of `prompts` is judged
    against, of `total` prompts. O is `wanted`, or 0 where there are no others."""
    count = wanted if total > 1 else 0
    rows = []
    for prompt in prompts:
        drawn = np.random.default_rng([seed, VALUE_OTHERS, prompt])
        rows.append((prompt + drawn.integers(1, max(2, total), (images, count))) % total)
    return torch.tensor(np.array(rows), dtype=torch.long).view(len(prompts), images, count)


def state_bytes(shape: Sequence[int], images: int) -> int:
    """Memory of one state of each of some images."""
    return 2 * images * int(np.prod(shape)) * STORED.itemsize


def draw_round(
    policy: ImagePolicy,
    process: ReverseProcess,
    reward: RewardFn,
    prompts: list[str],
    cond: Condition,
    *,
    images: int,
    states: Tensor,
    others: Tensor | None = None,
    everything: Sequence[str] = (),
    seed: int,
    purpose: int,
    first: int,
    batch: Fitting,
) -> Examples:
    """The examples of some prompts.

    Args:
        policy, process: draw the images.
        reward: of the finished ones.
        prompts: N of them.
        cond: their conditioning.
        images: B.
        states: (N, S) kept, see `states_of`.
        others: (N, B, O) prompts to judge each image against as well, numbers in `everything`; None
            for no others.
        seed, purpose: of the random streams.
        first: number of the first prompt.
        batch: images drawn at a time.

    Raises:
        RewardError: the reward fails.
    """
    total = len(prompts) * images
    owner = torch.arange(len(prompts)).repeat_interleave(images)
    shape, count = policy.latent_shape, states.shape[1]
    x = torch.zeros(total, count, *shape, dtype=STORED)
    x0_hat, sample = torch.zeros_like(x), torch.empty(total, *shape)

    def part(begin: int, end: int) -> None:
        watch = Watch(policy, process, states[owner[begin:end]], x[begin:end], x0_hat[begin:end])
        chain = sample_chain(
            watch,
            process,
            take(cond, owner[begin:end]),
            shape,
            generators(seed, purpose, 0, range(first * images + begin, first * images + end)),
            device=policy.device,
            into=DenoisingChain.empty(
                end - begin, shape, process.num_steps, device=policy.device, path=False
            ),
        )
        watch.keep(chain.sample)
        sample[begin:end] = chain.sample

    batch.over(total, part)
    texts = [prompts[i] for i in owner.tolist()]
    pictures = policy.decode(sample)
    scores = judge(reward, pictures, texts, owner).raw.float().cpu()
    if others is None:
        others = torch.zeros(len(prompts), images, 0, dtype=torch.long)
    asked = [
        judge(reward, pictures, [everything[i] for i in column.tolist()]).raw.float().cpu()
        for column in others.flatten(0, 1).T
    ]
    split = (len(prompts), images)
    return Examples(
        x.view(*split, *x.shape[1:]),
        x0_hat.view(*split, *x.shape[1:]),
        states.clone(),
        scores.view(split),
        others,
        torch.stack(asked, 1).view(others.shape) if asked else torch.zeros(others.shape),
    )


class Watch:
    """The policy's prediction, which also keeps states on their way.

    Args:
        policy, process: draw one chain of B rows, from its first step to its last.
        states: (B, S) kept of each row.
        x, x0_hat: (B, S, C, h, w) room for them.
    """

    def __init__(
        self,
        policy: ImagePolicy,
        process: ReverseProcess,
        states: Tensor,
        x: Tensor,
        x0_hat: Tensor,
    ) -> None:
        self.policy, self.process, self.states = policy, process, states
        self.x, self.x0_hat = x, x0_hat
        self.step, self.latest = 0, torch.zeros(1)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        self.keep(x_t)
        output = self.policy.predict(x_t, t, cond)
        step = torch.full((len(x_t),), self.step, device=x_t.device)
        self.latest = self.process.x0_hat(output, x_t, step)
        self.step += 1
        return output

    def keep(self, x_t: Tensor) -> None:
        """Keep this state in the rows that want it."""
        rows, columns = (self.states == self.step).nonzero(as_tuple=True)
        if len(rows):
            self.x[rows, columns] = x_t.to("cpu", STORED)[rows]
            if self.step:
                self.x0_hat[rows, columns] = self.latest.to("cpu", STORED)[rows]
