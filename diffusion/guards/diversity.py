"""How unlike each other images of one prompt are: the first thing that over-optimisation takes.

    d(a, b)    root of the mean squared difference of two images' features
    diversity  mean over pairs of a group of d, then mean over groups

The features are the pixels of the image made small, so that noise and single edges do not count:
the mean colour of each of 16 x 16 fields, each in [0, 1]. Diversity is then in [0, 1]; 0 means that
every prompt has one image. It needs no network, so numbers of any two models can be compared. A
function (B, 3, H, W) -> (B, F) of another kind, such as CLIP's encoder, can be given.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FIELDS = 16


def small_pixels(images: Tensor) -> Tensor:
    """(B, 3 * 16 * 16) features of images (B, 3, H, W) in [0, 1]; smaller ones stay as they are."""
    size = (min(FIELDS, images.shape[-2]), min(FIELDS, images.shape[-1]))
    return F.adaptive_avg_pool2d(images.float(), size).flatten(1)


def within_group(
    images: Tensor, group: Tensor, features: Callable[[Tensor], Tensor] = small_pixels
) -> float:
    """Mean distance of two images (B, 3, H, W) of one group (B,); NaN where no group has two."""
    found = features(images).double()
    means = []
    for one in group.unique():
        mine = found[group == one]
        if len(mine) > 1:
            means.append(F.pdist(mine).mean() / found.shape[1] ** 0.5)
    return float(torch.stack(means).mean()) if means else float("nan")
