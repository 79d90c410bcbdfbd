"""Three weak training checkers of the shipped world, as rewards that invite over-optimisation.

Each is a small network of the shipped checker's kind that saw 400 clean pictures with a fifth of
their labels wrong, its own pictures and its own mistakes (`scripts/train_weak_checkers.py`). It
never saw a broken picture or an empty slot, so it has an opinion on anything. What it likes and
`diffusion.world.gold` does not is over-optimisation.

    genpol finetune --reward scripts.weak_checkers:weak0 ...

Images (B, 3, 64, 64) in [0, 1], prompts captions of the world; rewards (B,) in [0, 1]: the mean
probability of the requested attributes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from diffusion.world.checker import Checker, answers
from diffusion.world.scenes import parse_caption

WEIGHTS = Path(__file__).parent / "assets"
COUNT = 3


def empty_checker() -> Checker:
    """The network, untrained."""
    return Checker(width=24, attentions=1, hidden=24)


@cache
def load_weak(index: int) -> Checker:
    """Weak checker `index` in evaluation mode."""
    checker = empty_checker()
    weights = load_file(WEIGHTS / f"weak_checker_{index}.safetensors")
    checker.load_state_dict({name: value.float() for name, value in weights.items()})
    return checker.eval().requires_grad_(False)


@torch.no_grad()
def score(checker: Checker, images: Tensor, prompts: list[str]) -> Tensor:
    """Mean probability of the requested attributes."""
    scenes = [parse_caption(prompt) for prompt in prompts]
    asked = torch.tensor([[-1 if a is None else a for a in answers(s)] for s in scenes if s])
    if len(asked) != len(prompts):
        raise ValueError("a prompt is no caption of the drawn world")
    logits = checker(images.float().cpu())
    said = [
        each.softmax(-1).gather(1, asked[:, m : m + 1].clamp(min=0))
        for m, each in enumerate(logits)
    ]
    known = asked >= 0
    return (torch.cat(said, 1) * known).sum(1) / known.sum(1)


def weak0(images: Tensor, prompts: list[str]) -> Tensor:
    return score(load_weak(0), images, prompts)


def weak1(images: Tensor, prompts: list[str]) -> Tensor:
    return score(load_weak(1), images, prompts)


def weak2(images: Tensor, prompts: list[str]) -> Tensor:
    return score(load_weak(2), images, prompts)


def worst_of_three(images: Tensor, prompts: list[str]) -> Tensor:
    """min(weak0, weak1, weak2): what none of the three is fooled by."""
    said = [score(load_weak(i), images, prompts) for i in range(COUNT)]
    return torch.stack(said).min(0).values
