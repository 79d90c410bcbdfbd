"""`ocr`: whether an image shows the text that its prompt asks for, by text recognition.

    reward = 1 - min(distance(found, wanted), n) / n,   n = length of the text wanted

distance is Levenshtein's. Case and white space do not count. A reward of 1 also where the text
wanted stands somewhere inside what was found (Flow-GRPO, arXiv 2505.05470). In [0, 1].

The text wanted is the prompt's metadata "text" or "ocr", else what the prompt quotes: "...", “...”,
«...» or, between other characters than letters, '...'. Several quotations count as one text.

The recogniser is rapidocr-onnxruntime, which ships its models: pip install "genpol[ocr]".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.errors import InputError, RewardError, shown
from diffusion.prompts.prompt import metadata_of
from diffusion.rewards.pixels import to_uint8

KEYS = ("text", "ocr")
_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|«([^»]+)»|(?<!\w)\'([^\']+(?:\'\w[^\']*)*)\'(?!\w)')
_LONGEST = 2_000  # characters that are compared; their square is the time

Recognise = Callable[[np.ndarray], str]


class OCR:
    """A RewardFn; `recognise` maps pixels (H, W, 3) uint8 to the text found, lines joined."""

    def __init__(self, recognise: Recognise) -> None:
        self.recognise = recognise

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(B, 3, H, W) float in [0, 1] and B prompts -> (B,) in [0, 1].

        Raises RewardError for a prompt that asks for no text.
        """
        wanted = [wanted_text(prompt) for prompt in prompts]
        pairs = zip(to_uint8(images), wanted, strict=True)
        return torch.tensor([similarity(self.recognise(pixels), text) for pixels, text in pairs])


def load_ocr(location: str | None) -> OCR:
    """The reward with rapidocr-onnxruntime. Raises InputError where that is not installed."""
    if location is not None:
        raise InputError(f'Reward "ocr" has no weights: leave out @{shown(location)}.')
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ModuleNotFoundError as error:
        missing = "" if error.name == "rapidocr_onnxruntime" else f" ({error.name} is missing)"
        raise InputError(
            f'Reward "ocr" needs rapidocr-onnxruntime{missing}: pip install "genpol[ocr]".'
        ) from error
    except Exception as error:  # OpenCV without a system library, and the like
        raise InputError(
            f'Reward "ocr": rapidocr-onnxruntime cannot be imported '
            f"({type(error).__name__}: {shown(error, 160)})."
        ) from error
    threads = torch.get_num_threads()
    engine = RapidOCR(intra_op_num_threads=threads, inter_op_num_threads=1)

    def recognise(pixels: np.ndarray) -> str:
        # It reads arrays as OpenCV does: blue first.
        found, _ = engine(np.ascontiguousarray(pixels[..., ::-1]))
        return " ".join(str(line[1]) for line in found or [])

    return OCR(recognise)


def wanted_text(prompt: str) -> str:
    """The text that a prompt asks for. Raises RewardError where it asks for none."""
    metadata: Any = metadata_of(prompt)
    for key in KEYS:
        if plain(str(metadata.get(key) or "")):
            return str(metadata[key])
    quoted = " ".join(next(filter(None, found)) for found in _QUOTED.findall(prompt))
    if not plain(quoted):
        raise RewardError(
            f'Reward "ocr": the prompt "{shown(prompt)}" asks for no text. Quote the text in it, '
            f'as in: a sign that says "OPEN"; or give each prompt\'s in a column named '
            f"{' or '.join(KEYS)}."
        )
    return quoted


def similarity(found: str, wanted: str) -> float:
    """1 - min(distance, n) / n, and 1 where `wanted` stands inside `found`; see above."""
    found, wanted = plain(found), plain(wanted)
    if wanted in found:
        return 1.0
    length = len(wanted)
    # What is longer than twice the text is at least that far from it.
    if len(found) >= 2 * length:
        return 0.0
    return 1.0 - min(distance(found, wanted), length) / length


def plain(text: str) -> str:
    """Without case and white space, and cut."""
    return "".join(text.casefold().split())[:_LONGEST]


def distance(first: str, second: str) -> int:
    """Levenshtein's: the fewest characters put in, left out or replaced."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            above, row[j] = row[j], min(above + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1]
