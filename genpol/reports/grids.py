"""Grids of images as pictures, each image with its caption under it.

Small images are enlarged by a whole factor, so that a person can see them; their pixels stay as
they are. The size of the letters follows the width of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from torch import Tensor

MIN_SIDE = 128  # pixels; smaller images are enlarged
MARGIN = 4  # around an image
GAP = 16  # between pairs
SMALLEST, LARGEST = 13, 28  # height of letters
MOST_LINES = 12  # of a caption; what is longer ends in "…"
INK, GREY, PAPER = (29, 29, 31), (85, 85, 90), (255, 255, 255)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] as a PIL image of the same size."""
    array = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(array)


def grid(
    images: Tensor, captions: Sequence[str], *, title: str = "", columns: int | None = None
) -> Image.Image:
    """Images (B, 3, H, W) in [0, 1] with their B captions, in rows of `columns`.

    Args:
        images: what is shown.
        captions: one each.
        title: a line above all of them.
        columns: default near square.
    """
    return _sheet([[to_pil(image)] for image in images], captions, (), title, columns)


def captioned(
    pictures: Sequence[Image.Image], captions: Sequence[str], *, title: str = "", most: int = 512
) -> Image.Image:
    """Pictures of one size with their captions, reduced to at most `most` pixels a side."""
    groups = []
    for picture in pictures:
        small = picture.convert("RGB")
        small.thumbnail((most, most))
        groups.append([small])
    return _sheet(groups, captions, (), title, None)


def before_after(
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    title: str = "",
    columns: int | None = None,
) -> Image.Image:
    """Pairs of pictures of one size, labelled "before" and "after", a caption under each pair.

    Args:
        before: B pictures.
        after: B pictures, of the same prompts.
        captions: B prompts.
        title: a line above all of them.
        columns: pairs in a row; default near square.
    """
    groups = [[one, other] for one, other in zip(before, after, strict=True)]
    return _sheet(groups, captions, ("before", "after"), title, columns)


def wrap(text: str, font: Font, width: int, most: int = MOST_LINES) -> list[str]:
    """Lines of `text` no wider than `width` pixels; a word that is wider is broken.

    All of the text, or `most` lines of which the last ends in "…".
    """
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        while len(word) > 1 and font.getlength(word) > width:
            fits = max(1, sum(font.getlength(word[: n + 1]) <= width for n in range(len(word))))
            lines.append(word[:fits])
            word = word[fits:]
        if word:
            lines.append(word)
    if len(lines) > most:
        lines = lines[:most]
        while lines[-1] and font.getlength(lines[-1] + "…") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "…"
    return lines


def font_for(text: str, size: int) -> Font:
    """Letters `size` pixels high; a font of more scripts where the text needs it.

    What neither font has (Chinese, emoji) is drawn as boxes.
    """
    if all(ord(letter) < 0x250 or letter in "–—‘’“”…" for letter in text):
        return ImageFont.load_default(size)
    return _many_scripts(size)


@lru_cache
def _many_scripts(size: int) -> Font:
    """DejaVu Sans (Latin, Greek, Cyrillic, Arabic, ...), which comes with matplotlib."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _sheet(
    groups: Sequence[Sequence[Image.Image]],
    captions: Sequence[str],
    labels: Sequence[str],
    title: str,
    columns: int | None,
) -> Image.Image:
    """Groups of pictures side by side, a label above each picture, a caption under each group."""
    if len(captions) != len(groups):
        raise ValueError(f"expected {len(groups)} captions, received {len(captions)}")
    width, height = groups[0][0].size
    factor = max(1, -(-MIN_SIDE // min(width, height)))
    width, height = width * factor, height * factor
    letter = min(max(width // 12, SMALLEST), LARGEST)
    line = round(1.3 * letter)
    columns = columns or max(1, int(np.ceil(np.sqrt(len(groups)))))
    columns = min(columns, len(groups))
    of_group = len(groups[0]) * (width + MARGIN) - MARGIN
    gap = GAP if len(groups[0]) > 1 else 3 * MARGIN
    fonts = [font_for(caption, letter) for caption in captions]
    texts = [wrap(text, font, of_group) for text, font in zip(captions, fonts, strict=True)]
    rows = [range(i, min(i + columns, len(groups))) for i in range(0, len(groups), columns)]
    heights = [max(len(texts[i]) for i in row) * line for row in rows]
    above = line + MARGIN if labels else 0  # of each row
    title_font = font_for(title, letter + 2)
    whole_width = columns * (of_group + gap) + gap
    title_lines = wrap(title, title_font, whole_width - 2 * gap)
    top = gap + len(title_lines) * (line + 2) + (gap // 2 if title_lines else 0)
    whole_height = top + sum(above + height + 2 * MARGIN + high + gap for high in heights)
    canvas = Image.new("RGB", (whole_width, whole_height), PAPER)
    pen = ImageDraw.Draw(canvas)
    for i, words in enumerate(title_lines):
        pen.text((gap, gap + i * (line + 2)), words, fill=INK, font=title_font)
    y = top
    for row, high in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            x = gap + column * (of_group + gap)
            for k, picture in enumerate(groups[i]):
                left = x + k * (width + MARGIN)
                if labels:
                    pen.text((left, y), labels[k], fill=GREY, font=font_for(labels[k], letter))
                large = picture.resize((width, height), Image.Resampling.NEAREST)
                canvas.paste(large, (left, y + above))
            for n, words in enumerate(texts[i]):
                at = (x, y + above + height + 2 * MARGIN + n * line)
                pen.text(at, words, fill=INK, font=fonts[i])
        y += above + height + 2 * MARGIN + high + gap
    return canvas
