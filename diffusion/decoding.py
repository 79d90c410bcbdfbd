"""How many images an autoencoder takes at a time, by their pixels.

The memory of a pass grows with the pixels of its images. The widest layers are at full resolution,
and several of their activations are in memory at once. Measured on a CPU, above the weights, for
the decoder of Stable Diffusion and SDXL (128 to 512 channels):

    256 x 256, float32     5.6 kB a pixel     0.37 GB
    512 x 512, float32     4.0 kB a pixel     1.04 GB
    256 x 256, bfloat16    2.6 kB a pixel     0.17 GB

At the rate of the second line, an image of 1,024 x 1,024 pixels takes 4.2 GB in float32, and half
of it in half precision. That many pixels are one pass. A larger image is decoded in tiles where the
autoencoder can, which blends them: its pixels differ slightly from those of one pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PIXELS = 1024 * 1024  # of one pass


def images_at_once(size: tuple[int, int], most: int) -> int:
    """Images of one pass.

    Args:
        size: height and width of an image in pixels.
        most: however small they are.
    """
    return max(1, min(most, PIXELS // (size[0] * size[1])))


@contextmanager
def in_pieces(vae: Any, size: tuple[int, int]) -> Iterator[None]:
    """Within this context an autoencoder takes images of this size one by one, where two are more
    than PIXELS, and in tiles, where one is; if it can."""
    pixels = size[0] * size[1]
    wanted = {"use_slicing": 2 * pixels > PIXELS, "use_tiling": pixels > PIXELS}
    before = {name: getattr(vae, name) for name in wanted if hasattr(vae, name)}
    if before.get("use_slicing") is False and wanted["use_slicing"]:
        vae.enable_slicing()
    if before.get("use_tiling") is False and wanted["use_tiling"]:
        vae.enable_tiling()
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)
