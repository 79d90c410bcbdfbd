"""The gold checker: finds which requested attributes an image shows, by rules.

Nothing here is learned, so that a reward model trained on this world is never graded by itself;
it serves evaluation only. `gold_objects` finds the objects, this file compares them with a caption.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from diffusion.errors import InputError
from diffusion.world.gold_objects import Found, find_objects
from diffusion.world.scenes import (
    ANY,
    IMAGE_SIZE,
    POSITIONS,
    RELATIONS,
    Scene,
    Thing,
    parse_caption,
)

MAX_PLACE_DISTANCE = 10.0  # pixels, of a lone object from its nominal position
MOST_OBJECTS = 5  # compared with the caption, largest first; bounds the permutations

_THINGS = ("first", "second")
_ATTRIBUTES = ("shape", "colour", "size", "texture")


@dataclass(frozen=True)
class Verdict:
    """One image against one caption.

    correct: requested attribute ("first.shape", ..., "second.texture", "place") -> is it shown?
    wholly: every attribute is, and exactly the requested number of objects is there.
    """

    correct: dict[str, bool]
    wholly: bool

    @property
    def fraction(self) -> float:
        return sum(self.correct.values()) / len(self.correct)


def _matches(which: str, thing: Thing, found: Found | None) -> dict[str, bool]:
    """The requested attributes of one thing, and whether what was found has them."""
    return {
        f"{which}.{a}": found is not None and getattr(thing, a) == getattr(found, a)
        for a in _ATTRIBUTES
        if getattr(thing, a) != ANY
    }


def _placed(scene: Scene, chosen: tuple[Found | None, ...]) -> bool:
    centres = [found.centre for found in chosen if found is not None]
    if len(centres) < len(chosen):
        return False
    if scene.place == ANY:
        return True
    if scene.second is None:
        away = {place: np.hypot(*np.subtract(centres[0], at)) for place, at in POSITIONS.items()}
        nearest = min(away, key=lambda place: float(away[place]))
        return nearest == scene.place and bool(away[nearest] <= MAX_PLACE_DISTANCE)
    first, axis = RELATIONS[scene.place]
    right, down = np.subtract(centres[1], centres[0])
    along, across = (right, down) if axis == "x" else (down, right)
    return bool((along if first == 0 else -along) > abs(across))


def judge(image: np.ndarray, caption: str) -> Verdict:
    """Judge one image (64, 64, 3), float in [0, 1], against a caption of this world.

    Found objects are assigned to requested ones so that most attributes are right. A missing
    object has every attribute wrong, and the place too. An image with NaN shows nothing.
    Raises InputError for a caption that is not of this world.
    """
    scene = parse_caption(caption)
    if scene is None:
        raise InputError(
            f'The gold checker got the caption "{caption}", which is not of the shipped world; '
            'it judges captions such as "a small plain red circle on the left". '
            "Choose another reward or evaluation for your own prompts."
        )
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise InputError(f"The gold checker expected an image (64, 64, 3) but got {image.shape}.")
    things = [scene.first] if scene.second is None else [scene.first, scene.second]
    objects = find_objects(image)
    # Stand-ins for missing objects, so that one object may be either of two requested ones.
    pool: list[Found | None] = [*objects[:MOST_OBJECTS]]
    pool += [None] * max(0, len(things) - len(pool))

    best: tuple[int, bool, dict[str, bool]] = (-1, False, {})
    for chosen in permutations(pool, len(things)):
        right: dict[str, bool] = {}
        for which, thing, found in zip(_THINGS, things, chosen, strict=False):
            right |= _matches(which, thing, found)
        candidate = (sum(right.values()), _placed(scene, chosen), right)
        if candidate[:2] > best[:2]:
            best = candidate
    correct = best[2] | ({} if scene.place == ANY else {"place": best[1]})
    return Verdict(correct, all(correct.values()) and len(objects) == len(things))


def score(images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    """Judge images (B, 3, H, W) in [0, 1], resized to 64 x 64 where they are not.

    Returns "attributes" (B,), the fraction correct, and "wholly" (B,), 0 or 1.
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(prompts):
        raise InputError(
            f"The gold checker expected images (B, 3, H, W) and B prompts but got "
            f"{tuple(images.shape)} and {len(prompts)} prompts: one prompt per image?"
        )
    images = images.detach().float().cpu()
    if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        size = (IMAGE_SIZE, IMAGE_SIZE)
        images = torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
    arrays = images.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    verdicts = [judge(array, prompt) for array, prompt in zip(arrays, prompts, strict=True)]
    return {
        "attributes": torch.tensor([v.fraction for v in verdicts], dtype=torch.float32),
        "wholly": torch.tensor([float(v.wholly) for v in verdicts], dtype=torch.float32),
    }
