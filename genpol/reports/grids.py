"""Grids of images as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from torch import Tensor

MIN_SIDE = 128  # pixels; small images are enlarged so that a person can see them
MARGIN = 4


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] as a PIL image of the same size."""
    array = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(array)


def grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """Images (B, 3, H, W) in [0, 1] in rows of `columns` (default: near square)."""
    count, _, height, width = images.shape
    columns = columns or max(1, int(np.ceil(np.sqrt(count))))
    factor = max(1, -(-MIN_SIDE // min(height, width)))
    cell_h, cell_w = height * factor + MARGIN, width * factor + MARGIN
    rows = -(-count // columns)
    canvas = Image.new("RGB", (columns * cell_w + MARGIN, rows * cell_h + MARGIN), "white")
    for i in range(count):
        picture = to_pil(images[i]).resize(
            (width * factor, height * factor), Image.Resampling.NEAREST
        )
        canvas.paste(picture, (i % columns * cell_w + MARGIN, i // columns * cell_h + MARGIN))
    return canvas


def before_after(before: Path, after: Path) -> Image.Image:
    """Two saved grids side by side, captioned."""
    left, right = Image.open(before), Image.open(after)
    top = 28
    canvas = Image.new(
        "RGB", (left.width + right.width + 24, max(left.height, right.height) + top), "white"
    )
    canvas.paste(left, (0, top))
    canvas.paste(right, (left.width + 24, top))
    pen = ImageDraw.Draw(canvas)
    pen.text((8, 8), "before", fill="black")
    pen.text((left.width + 32, 8), "after", fill="black")
    return canvas
