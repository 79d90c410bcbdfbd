"""A small network that reads an unfinished latent, its noise level and a prompt.

Token states of the prompt are pooled by a few learnt queries, once for each prompt. The latent
passes through convolutions on a grid of at most 8 x 8 places. The level and the prompt scale and
shift each of their channels (FiLM, arXiv 1709.07871).

Shapes: B latents (C, h, w), N prompts, W the width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.chain import Condition
from diffusion.values.text import read_text, token_mask

GRID = 16  # places along the longer side after the first layer, at most
POOLED = 4  # places along each side that the last layer sees
QUERIES = 12  # of each part of the text
DROPOUT = 0.2  # while it learns
FREQUENCIES = 16  # of the noise level


class TextReading(nn.Module):
    """Prompts as a few vectors each, (N, K, W): what learnt queries find among the tokens.

    Args:
        sizes: D of every part of the condition, by name.
        width: W.
    """

    def __init__(self, sizes: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.names = tuple(sizes)
        self.looks = nn.ModuleList(nn.Linear(size, QUERIES) for size in sizes.values())
        self.takes = nn.ModuleList(nn.Linear(size, width) for size in sizes.values())
        self.which = nn.Parameter(0.5 * torch.randn(len(sizes) * QUERIES, width))

    def forward(self, cond: Condition) -> Tensor:
        found, parts = read_text(cond), []
        for name, look, take in zip(self.names, self.looks, self.takes, strict=True):
            states = found[name].float()
            tokens = states[:, None] if states.ndim == 2 else states
            tokens = F.layer_norm(tokens, tokens.shape[-1:])
            outside = ~token_mask(cond, tokens)[..., None]
            looks = (3 * look(tokens)).masked_fill(outside, -1e4).softmax(1)  # (N, L, Q)
            parts.append(looks.transpose(1, 2) @ take(tokens))
        return torch.cat(parts, 1) + self.which


class Thinned(nn.Module):
    """SiLU, of which a share is left out while it learns."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.silu(x), DROPOUT, self.training)


class Meeting(nn.Module):
    """What an image has of each thing that the prompt says: the prompt's K vectors look at the
    image's P places, and what they see beside what they are becomes (B, W)."""

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.where = nn.Parameter(0.3 * torch.randn(places, width))
        self.ask = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.take = nn.Linear(width, width)
        self.judge = nn.Sequential(
            nn.Linear(3 * width, 2 * width),
            Thinned(),
            nn.Linear(2 * width, width),
            nn.SiLU(),
        )

    def forward(self, places: Tensor, text: Tensor) -> Tensor:
        key = self.key(places + self.where)
        looks = (self.ask(text) @ key.transpose(1, 2) / key.shape[-1] ** 0.5).softmax(2)
        seen = looks @ self.take(places + self.where)
        return self.judge(torch.cat([seen, text, seen * text], 2)).mean(1)


class Block(nn.Module):
    """A residual block of two convolutions, whose channels a condition (B, E) scales and shifts."""

    def __init__(self, width: int, embedded: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(8, width), width)
        self.film = nn.Linear(embedded, 2 * width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[..., None, None].chunk(2, 1)
        hidden = F.silu(self.norm(features) * (1 + scale) + shift)
        return features + self.second(F.silu(self.first(hidden)))


class ValueNetwork(nn.Module):
    """A number (B,) for each latent, in standard deviations of the reward.

    Args:
        shape: of a latent, (C, h, w).
        text: D of every part of the condition that is read, by name.
        width: W.
        blocks: residual blocks.
    """

    def __init__(
        self, shape: tuple[int, int, int], text: Mapping[str, int], *, width: int, blocks: int
    ) -> None:
        super().__init__()
        channels, height, across = shape
        patch = max(1, math.ceil(max(height, across) / GRID))
        self.text = TextReading(text, width)
        self.stem = nn.Sequential(
            nn.Conv2d(2 * channels, width, max(3, patch), patch, padding=max(1, patch // 2)),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, 2, padding=1),
        )
        self.embed = nn.Sequential(
            nn.Linear(width + FREQUENCIES + 1, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, 2 * width),
        )
        self.blocks = nn.ModuleList(Block(width, 2 * width) for _ in range(blocks))
        self.norm = nn.GroupNorm(math.gcd(8, width), width)
        self.meeting = Meeting(width, POOLED * POOLED)
        self.head = nn.Sequential(
            nn.Linear((POOLED * POOLED + 3) * width, 2 * width),
            Thinned(),
            nn.Linear(2 * width, 1),
        )
        last = self.head[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.register_buffer("waves", math.pi * torch.arange(FREQUENCIES), persistent=False)

    def forward(
        self,
        x_t: Tensor,
        level: Tensor,
        text: Tensor,
        x0_hat: Tensor | None = None,
        shown: Tensor | None = None,
    ) -> Tensor:
        """`shown` (B,) bool says which rows see their x0_hat; None: all, where there is one."""
        x_t = x_t.float()
        known = torch.full_like(level, float(x0_hat is not None))
        hat = torch.zeros_like(x_t) if x0_hat is None else bounded(x0_hat.float())
        if shown is not None:
            known = known * shown
            hat = hat * shown[:, None, None, None]
        features = self.stem(torch.cat([x_t, hat], 1))
        waves = torch.cos(level[:, None] * self.waves)
        embedding = self.embed(torch.cat([text.mean(1), waves, known[:, None]], 1))
        for block in self.blocks:
            features = block(features, embedding)
        features = F.silu(self.norm(features))
        places = F.adaptive_avg_pool2d(features, POOLED).flatten(2).transpose(1, 2)
        met = self.meeting(places, text)
        return self.head(torch.cat([places.flatten(1), met, embedding], 1)).squeeze(1)


def bounded(x0_hat: Tensor) -> Tensor:
    """Predictions of x_0 from nearly pure noise, whose errors are large, at most of unit size."""
    size = x0_hat.square().flatten(1).mean(1).sqrt().clamp_min(1)
    return x0_hat / size.reshape(-1, *[1] * (x0_hat.ndim - 1))
