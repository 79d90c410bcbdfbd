"""JPEG file size as a reward, at quality 95 and in units of 1000 bytes (DDPO, arXiv 2305.13301).

Easily hacked: the most compressible image is a blank one.
"""

from __future__ import annotations

import io

import torch
from torch import Tensor

from diffusion.rewards.pixels import to_pil

QUALITY = 95


def jpeg_incompressibility(images: Tensor, prompts: list[str]) -> Tensor:
    """Size of each image's JPEG in kilobytes (1000 bytes): (B, 3, H, W) in [0, 1] -> (B,)."""
    sizes = []
    for picture in to_pil(images):
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=QUALITY)
        sizes.append(buffer.tell() / 1000)
    return torch.tensor(sizes)


def jpeg_compressibility(images: Tensor, prompts: list[str]) -> Tensor:
    """Minus the JPEG size in kilobytes: (B, 3, H, W) in [0, 1] -> (B,), higher is smaller."""
    return -jpeg_incompressibility(images, prompts)
