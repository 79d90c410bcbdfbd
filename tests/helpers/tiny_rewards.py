"""Rewards for tests, loaded as `tiny_rewards:NAME`."""

from __future__ import annotations

import torch

failure: str | None = None  # "nan" or "raise": what `fragile` does from call `after` on
after = 0
calls = 0


def brightness(images, prompts):
    """Smooth in the pixels, unlike a JPEG's size."""
    return images.mean((1, 2, 3))


def constant(images, prompts):
    return torch.ones(len(images))


def fragile(images, prompts):
    global calls
    calls += 1
    value = brightness(images, prompts)
    if failure is None or calls <= after:
        return value
    if failure == "raise":
        raise RuntimeError("the scorer fell over")
    value[-1] = float("nan")
    return value


def huge(images, prompts):
    """Finite, and far too large to learn from."""
    return brightness(images, prompts) * 1e37
