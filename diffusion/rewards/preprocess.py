"""A CLIP image processor on batched tensors, without PIL: resize, centre crop, normalise.

Follows `CLIPImageProcessor` (bicubic with antialiasing, a = -0.5 as in PIL), but keeps float values
where PIL rounds to 8 bits, so pixels differ by about 1/255 at most before normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.errors import InputError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class Preprocess:
    """What a `preprocessor_config.json` says; sizes are (height, width) in pixels.

    `size` resizes to exactly that, `shortest_edge` keeps the aspect ratio; None leaves a step out.
    """

    size: tuple[int, int] | None = None
    shortest_edge: int | None = 224
    crop: tuple[int, int] | None = (224, 224)
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resample: str = "bicubic"

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, 3, h, w) float32, normalised."""
        images = images.float()
        target = self._target(images.shape[-2], images.shape[-1])
        if target != tuple(images.shape[-2:]):
            images = F.interpolate(images, target, mode=self.resample, antialias=True).clamp(0, 1)
        if self.crop:
            images = _centre_crop(images, *self.crop)
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return (images - mean) / std

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if self.size:
            return self.size
        if not self.shortest_edge:
            return height, width
        short, long = min(height, width), max(height, width)
        longer = int(self.shortest_edge * long / short)
        return (longer, self.shortest_edge) if height >= width else (self.shortest_edge, longer)


def read_preprocess(config: Mapping[str, Any] | None, image_size: int) -> Preprocess:
    """From a `preprocessor_config.json` (None: CLIP's usual, at the model's `image_size`).

    Raises InputError on a resampling filter other than bilinear or bicubic.
    """
    if not config:
        return Preprocess(shortest_edge=image_size, crop=(image_size, image_size))
    size, shortest = None, None
    if config.get("do_resize", True):
        wanted = config.get("size", image_size)
        if isinstance(wanted, Mapping) and "height" in wanted:
            size = _pair(wanted)
        else:
            shortest = int(wanted["shortest_edge"] if isinstance(wanted, Mapping) else wanted)
    crop = None
    if config.get("do_center_crop", True):
        crop = _pair(config.get("crop_size", image_size))
    resample = config.get("resample", 3)
    if resample not in _RESAMPLE:
        raise InputError(
            f"preprocessor_config.json asks for PIL resampling {resample!r}: "
            f"only 2 (bilinear) and 3 (bicubic) are supported."
        )
    normalise = config.get("do_normalize", True)
    mean = tuple(config.get("image_mean", CLIP_MEAN)) if normalise else (0.0, 0.0, 0.0)
    std = tuple(config.get("image_std", CLIP_STD)) if normalise else (1.0, 1.0, 1.0)
    return Preprocess(size, shortest, crop, mean, std, _RESAMPLE[resample])


def _pair(size: Mapping[str, int] | int) -> tuple[int, int]:
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    return int(size), int(size)


def _centre_crop(images: Tensor, height: int, width: int) -> Tensor:
    """Crop to (height, width) about the centre; an image smaller than that gets black borders."""
    missing_y = max(height - images.shape[-2], 0)
    missing_x = max(width - images.shape[-1], 0)
    if missing_y or missing_x:
        top, left = math.ceil(missing_y / 2), math.ceil(missing_x / 2)
        images = F.pad(images, (left, missing_x - left, top, missing_y - top))
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]
