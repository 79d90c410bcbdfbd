"""One preference: a prompt, the image that was chosen and the one that was rejected."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from diffusion.errors import shown
from diffusion.preferences.images import read_image
from diffusion.prompts.prompt import Prompt

Source = bytes | str
"""An image: the bytes of its file, or its path."""


@dataclass(frozen=True)
class Pair:
    """`where` is what messages call it, such as "pairs.jsonl, line 3"."""

    prompt: Prompt
    chosen: Source
    rejected: Source
    where: str

    def images(self, size: tuple[int, int]) -> Tensor:
        """(2, 3, H, W) in [0, 1], the chosen one first.

        Raises:
            InputError: one of them cannot be read.
        """
        return torch.stack(
            [
                read_image(self.chosen, size, f"{self.where}, the chosen image"),
                read_image(self.rejected, size, f"{self.where}, the rejected image"),
            ]
        )


def batched(pairs: Iterable[Pair], count: int) -> Iterator[list[Pair]]:
    """Lists of at most `count` pairs, in order."""
    left = iter(pairs)
    while some := list(islice(left, count)):
        yield some


def source_of(value: Any, folder: str) -> Source:
    """An image as a row has it: bytes, a path from `folder`, or a mapping with either.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, dict):  # as the datasets library writes images
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"an image is {shown(value)}, not bytes or a path")
    if value.startswith(("http://", "https://")):
        raise ValueError(f"an image is the address {shown(value)}: load it into a file first")
    return os.path.join(folder, os.path.expanduser(value))
