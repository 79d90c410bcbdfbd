"""Attribute correctness in the shipped world of captioned shapes, all in [0, 1].

`attributes` is what one trains on: a learned checker's graded opinion. `gold` shares no code with
it and is for evaluation only; what rises in the first and not in the second was hacked.
Images (B, 3, H, W) in [0, 1], prompts captions of `diffusion.world.scenes`; results (B,).
"""

from __future__ import annotations

from torch import Tensor


def attributes(images: Tensor, prompts: list[str]) -> Tensor:
    """Mean probability the training checker gives to the requested attributes."""
    from diffusion.world.checker import soft_score

    return soft_score(images, prompts)


def attributes_hard(images: Tensor, prompts: list[str]) -> Tensor:
    """Share of requested attributes that are the training checker's first choice."""
    from diffusion.world.checker import hard_score

    return hard_score(images, prompts)["attributes"]


def gold(images: Tensor, prompts: list[str]) -> Tensor:
    """Share of requested attributes the gold checker finds."""
    from diffusion.world.gold import score

    return score(images, prompts)["attributes"]


def gold_wholly(images: Tensor, prompts: list[str]) -> Tensor:
    """1 where the gold checker finds everything right, else 0."""
    from diffusion.world.gold import score

    return score(images, prompts)["wholly"]
