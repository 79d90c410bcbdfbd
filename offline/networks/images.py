"""A small residual network for images, modulated by an instruction; and random shifts.

GroupNorm instead of BatchNorm: with a target network and small batches, running statistics
are one more thing that can disagree between training and use.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

ImageEncoderName = Literal["small", "resnet34"]
_STAGES: dict[str, tuple[tuple[int, int], ...]] = {  # (channels, blocks); each halves the size
    "small": ((32, 1), (64, 1), (128, 1)),
    "resnet34": ((64, 3), (128, 4), (256, 6), (512, 3)),
}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; FiLM (scale and shift by the instruction) before the last ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, language: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1 = nn.GroupNorm(outputs // 16, outputs)
        self.norm2 = nn.GroupNorm(outputs // 16, outputs)
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.film = nn.Linear(language, 2 * outputs) if language else None
        if self.film is not None:  # starts as the identity
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, language: Tensor | None) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.film is not None:
            scale, shift = self.film(language)[..., None, None].chunk(2, dim=1)
            y = y * (1 + scale) + shift
        return F.relu(y + self.skip(x))


class ResNet(nn.Module):
    """Images (B, height, width, 3) uint8 and an embedding (B, D) or None -> (B, `dim`).

    Two channels hold the pixel's position, since averaging over the picture at the end forgets it.

    Args:
        name: "small" (0.3 M weights) or "resnet34".
        language: D, or 0 without instructions.
    """

    def __init__(self, name: ImageEncoderName = "small", language: int = 0) -> None:
        super().__init__()
        stages = _STAGES[name]
        self.stem = nn.Conv2d(5, stages[0][0], 5, 2, 2)
        blocks, inputs = [], stages[0][0]
        for channels, count in stages:
            for i in range(count):
                blocks.append(ResidualBlock(inputs, channels, 2 if i == 0 else 1, language))
                inputs = channels
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(inputs)
        self.dim = inputs

    def forward(self, images: Tensor, language: Tensor | None = None) -> Tensor:
        x = images.movedim(-1, 1).to(self.stem.weight) / 127.5 - 1
        rows = torch.linspace(-1, 1, x.shape[2], device=x.device, dtype=x.dtype)
        columns = torch.linspace(-1, 1, x.shape[3], device=x.device, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        x = F.relu(self.stem(torch.cat([x, grid.expand(len(x), -1, -1, -1)], dim=1)))
        for block in self.blocks:
            x = block(x, language)
        return self.norm(x.mean((2, 3)))


def random_shift(images: Tensor, pixels: int, generator: Generator | None = None) -> Tensor:
    """Shift each image by up to `pixels` in both directions, its border repeated (DrQ).

    Args:
        images: (B, height, width, 3), any dtype.

    Returns:
        The same shape and dtype.
    """
    if pixels == 0:
        return images
    size, height, width, _ = images.shape
    shift = torch.randint(-pixels, pixels + 1, (2, size, 1), generator=generator)
    rows = (torch.arange(height) + shift[0]).clamp(0, height - 1).to(images.device)
    columns = (torch.arange(width) + shift[1]).clamp(0, width - 1).to(images.device)
    which = torch.arange(size, device=images.device)[:, None, None]
    return images[which, rows[:, :, None], columns[:, None, :]]
