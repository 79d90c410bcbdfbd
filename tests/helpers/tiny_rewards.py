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


asked: list[list[str]] = []  # the prompts of every call of `ranked`


def ranked(images, prompts, metadata):
    """The place of each image among its prompt's, and how many these are."""
    asked.append(prompts)
    assert metadata == [{} for _ in prompts] and len(set(prompts)) == 1
    order = sorted(range(len(images)), key=lambda i: images[i].mean())
    return [float(order.index(i)) for i in range(len(images))], {"images": len(images)}


ranked.images = "uint8"
ranked.group = True
