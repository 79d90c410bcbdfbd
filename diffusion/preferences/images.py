"""Images of a file of pairs: decoded within limits, brought to the size that is trained on.

An image of another size is scaled (Lanczos) until it covers the wanted size, and its centre is cut
out. What is transparent becomes white.
"""

from __future__ import annotations

import io
import os

import numpy as np
import torch
from torch import Tensor

from diffusion.errors import InputError, shown

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 2**26  # 8192 x 8192; a small file can claim billions
MOST_BYTES = 2**28
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr")


def read_image(source: bytes | str, size: tuple[int, int], where: str) -> Tensor:
    """(3, H, W) float32 in [0, 1].

    Args:
        source: the bytes of a PNG, JPEG or WebP, or the path of one.
        size: (H, W).
        where: what messages call it, such as "pairs.jsonl, line 3, chosen".

    Raises:
        InputError: it cannot be read, is too large, or of another kind.
    """
    import warnings

    from PIL import Image, ImageOps

    data = source if isinstance(source, bytes) else _bytes_of(source, where)
    if len(data) > MOST_BYTES:
        raise InputError(f"{where}: {len(data)} bytes; an image has at most {MOST_BYTES}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS or image.mode not in MODES:
                    raise InputError(
                        f"{where}: {image.width} x {image.height} pixels of mode {image.mode}; "
                        f"expected 8 bits a channel and at most {MOST_PIXELS} pixels: save it anew."
                    )
                image.load()
                picture = _on_white(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except Exception as error:  # a torn file fails in as many ways as formats have parts
        raise InputError(
            f"{where} is no image that can be read as PNG, JPEG or WebP ({shown(error)}): "
            "save it anew, or take its row out."
        ) from error
    array = np.array(_fitted(picture, size), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def _bytes_of(path: str, where: str) -> bytes:
    try:
        if os.path.getsize(path) > MOST_BYTES or not os.path.isfile(path):
            raise InputError(f"{where}: {shown(path, 200)} is no image file of a usual size.")
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{where}: {shown(path, 200)} cannot be read ({shown(why)}).") from error


def _on_white(image):
    """RGB; a transparent image laid on white."""
    from PIL import Image

    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _fitted(image, size: tuple[int, int]):
    """Scaled until it covers (H, W), and cut to its centre."""
    from PIL import Image, ImageOps

    height, width = size
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
