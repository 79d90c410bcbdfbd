"""Resizes pictures: for training and in deployment alike, or a network would see two kinds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from offline.types import Obs


def resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (height, width, 3) uint8 at another size, by bilinear interpolation over areas.

    The whole picture is kept: where the sides' ratio differs, it is squeezed.

    Args:
        picture: of one camera.
        size: height and width of the result.
    """
    height, width = size
    if picture.shape[:2] == (height, width):
        return picture
    from PIL import Image

    whole = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR))


def at_sizes(obs: Obs, shapes: Mapping[str, tuple[int, ...]]) -> Obs:
    """Observations whose pictures have the sizes that a network was trained with.

    Args:
        obs: each (B, ...); pictures (B, height, width, 3) uint8.
        shapes: of one observation, per key; vectors are left as they are.
    """
    resized = {
        key: _resized(obs[key], (shape[0], shape[1]))
        for key, shape in shapes.items()
        if len(shape) == 3 and key in obs and _other_size(obs[key], shape)
    }
    return {**obs, **resized} if resized else obs


def _other_size(value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether it is a picture at all, and of another size."""
    picture = value.ndim == 4 and value.dtype == torch.uint8 and value.shape[3] == shape[2] == 3
    return picture and tuple(value.shape[1:]) != tuple(shape) and value.numel() > 0


def _resized(value: Tensor, size: tuple[int, int]) -> Tensor:
    rows = [resize(row, size) for row in value.cpu().numpy()]
    return torch.from_numpy(np.stack(rows)).to(value.device)
