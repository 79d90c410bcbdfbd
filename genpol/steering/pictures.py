"""A pipeline as a `Policy` and a reward as a `Critic`, so that `Steered` chooses pictures, too.

A picture is an action chunk of 3 H rows of W numbers in [0, 1]: it is proposed, scored and
"executed" as a whole, as chunks are. An observation of a prompt is its place in a list, and the
seed of its first candidate.

    steered = Steered(Pictures(draw, prompts, size), Judged(reward, prompts, size), K, argmax(),
                      check=False)
    steered.decide(observations([0, 1], [7, 7 + K]), None)

is the best of K by the reward. What sees only finished candidates ends there: pruning saves what
unfinished ones would cost, and so it looks into chains (`diffusion/steered_chain.py`).

Shapes: B prompts, K pictures of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from offline.spec import ActionSpec
from offline.types import Obs

Draw = Callable[[list[str], list[int]], Tensor]  # prompts and seeds (M) -> (M, 3, H, W) in [0, 1]
Judge = Callable[[Tensor, list[str]], Tensor]  # images (M, 3, H, W) and prompts -> (M,)


def observations(places: Sequence[int], seeds: Sequence[int]) -> Obs:
    """Prompts by their places in the list, each with the seed of its first candidate."""
    return {"prompt": torch.tensor(places), "seed": torch.tensor(seeds)}


def picture_spec(size: tuple[int, int]) -> ActionSpec:
    """Pictures of `size` (height, width) as chunks: 3 x height rows of width numbers."""
    height, width = size
    return ActionSpec.from_bounds([0.0] * width, [1.0] * width, scale="none", chunk=3 * height)


class Pictures:
    """A pipeline that proposes pictures of prompts.

    Args:
        draw: candidate k of an observation is drawn by its seed + k, whatever the generator is.
        prompts: that observations name.
        size: (height, width) of a picture.
    """

    def __init__(self, draw: Draw, prompts: Sequence[str], size: tuple[int, int]) -> None:
        self.draw, self.prompts, self.spec = draw, prompts, picture_spec(size)

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """(B, n, 3 H, W)."""
        texts = [self.prompts[i] for i in obs["prompt"].tolist() for _ in range(n)]
        seeds = [first + k for first in obs["seed"].tolist() for k in range(n)]
        return self.draw(texts, seeds).reshape(-1, n, self.spec.chunk, self.spec.dim)

    def reset(self) -> None: ...

    def commit(self, act: Tensor) -> None: ...

    def keep(self, rows: Tensor) -> None: ...


class Judged:
    """A reward of finished pictures as a critic of one head.

    Args:
        reward: of images and their prompts.
        prompts: that observations name.
        size: (height, width) of a picture.
    """

    def __init__(self, reward: Judge, prompts: Sequence[str], size: tuple[int, int]) -> None:
        self.reward, self.prompts, self.spec = reward, prompts, picture_spec(size)

    def encode(self, obs: Obs) -> Tensor:
        """(B,) the prompts' places."""
        return obs["prompt"]

    def score(self, features: Tensor, act: Tensor) -> Tensor:
        """(1, B, K)."""
        count = act.shape[1]
        texts = [self.prompts[i] for i in features.tolist() for _ in range(count)]
        return self.reward(as_images(act.flatten(0, 1)), texts).reshape(1, -1, count)

    def __call__(self, obs: Obs, act: Tensor) -> Tensor:
        return self.score(self.encode(obs), act)


def as_images(act: Tensor) -> Tensor:
    """Chunks (M, 3 H, W) as images (M, 3, H, W)."""
    return act.reshape(len(act), 3, -1, act.shape[-1])
