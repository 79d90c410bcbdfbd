"""Converts image tensors to 8-bit pixels."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) float in [0, 1] -> (B, H, W, 3) uint8, rounded to nearest, clamped."""
    pixels = (images.detach().float() * 255).round().clamp(0, 255)
    return pixels.to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) float in [0, 1] -> B RGB pictures."""
    return [Image.fromarray(array) for array in to_uint8(images)]
