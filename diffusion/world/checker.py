"""The learned training checker: estimates which requested attributes a drawn scene shows.

A small convolutional network reads a layout and, for each of two slots (leftmost or topmost object
first, as in `Scene.slots`), a size, a texture, a colour and a shape. Every head has one class more
than the world has words, "none": what it says of an empty slot or of something it cannot name, so
that an absent object earns nothing by chance.

It was trained by `scripts/train_tiny_checker.py` on blurred, noisy, blended and broken scenes with
soft targets, so its probabilities are graded: a dense reward. It is a proxy, and an optimiser will
find its blind spots; judge results by `diffusion.world.gold`, which shares no code with it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion.errors import InputError
from diffusion.world.scenes import (
    ANY,
    COLOURS,
    IMAGE_SIZE,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    parse_caption,
)

WEIGHTS = Path(__file__).parent.parent / "assets" / "checker.safetensors"
SLOTS = 2
LAYOUTS = (*POSITIONS, "horizontal pair", "vertical pair")
SLOT_ATTRIBUTES = {"size": SIZES, "texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}
# The M = 9 questions asked of an image, in column order, and their numbers of classes, "none" last.
QUESTIONS = (*(f"{name} {slot}" for slot in range(SLOTS) for name in SLOT_ATTRIBUTES), "layout")
CLASSES = (*(len(values) + 1 for values in SLOT_ATTRIBUTES.values()),) * SLOTS + (len(LAYOUTS) + 1,)


def _layer(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Checker(nn.Module):
    """(B, 3, 64, 64) in [0, 1] -> a tuple of M = 9 logits, each (B, C_m), in the order `QUESTIONS`.

    An 8x8 feature map; the whole of it decides the layout and where each slot's attention looks;
    attention-pooled features decide that slot's attributes, with heads that both slots share.
    """

    def __init__(self, width: int = 64, attentions: int = 4, hidden: int = 48) -> None:
        super().__init__()
        cells, attended = (IMAGE_SIZE // 8) ** 2, SLOTS * attentions
        self.trunk = nn.Sequential(
            _layer(3, 24, 5, 2),
            _layer(24, 24, 3, 1),
            _layer(24, 40, 3, 2),
            _layer(40, 40, 3, 1),
            _layer(40, width, 3, 2),
            _layer(width, width, 3, 1),
        )
        self.whole = nn.Sequential(
            nn.Conv2d(width, 8, 1), nn.Flatten(), nn.Linear(8 * cells, hidden), nn.ReLU()
        )
        self.layout = nn.Linear(hidden, CLASSES[-1])
        self.look_where = nn.Linear(hidden, attended * cells)
        self.look_at = nn.Conv2d(width, attended, 1)
        self.describe = nn.Sequential(
            nn.Linear(attentions * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 2 * width)
        )
        self.slot_heads = nn.ModuleList(
            nn.Linear(2 * width, len(values) + 1) for values in SLOT_ATTRIBUTES.values()
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.trunk(images * 2 - 1)
        whole = self.whole(features)
        looks = self.look_at(features).flatten(2)  # (B, slots * attentions, 64)
        looks = (looks + self.look_where(whole).view_as(looks)).softmax(dim=-1)
        pooled = looks @ features.flatten(2).transpose(1, 2)  # (B, slots * attentions, width)
        slots = F.relu(self.describe(pooled.view(len(images), SLOTS, -1)))
        by_head = [head(slots) for head in self.slot_heads]
        read = [logits[:, slot] for slot in range(SLOTS) for logits in by_head]
        return (*read, self.layout(whole))


@cache
def load_checker() -> Checker:
    """The shipped checker in evaluation mode, fp32; loaded once per process."""
    checker = Checker()
    checker.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS).items()})
    return checker.eval().requires_grad_(False)


def answers(scene: Scene) -> list[int | None]:
    """The class a scene gives each of the M questions; None where it leaves the answer open."""
    columns: list[int | None] = []
    slots = scene.slots()
    for slot in range(SLOTS):
        thing = slots[slot][0] if slot < len(slots) else None
        for name, values in SLOT_ATTRIBUTES.items():
            value = ANY if thing is None else getattr(thing, name)
            columns.append(None if value == ANY else values.index(value))
    if scene.second is None:
        return [*columns, None if scene.place == ANY else LAYOUTS.index(scene.place)]
    axis = RELATIONS[scene.place][1]
    return [*columns, LAYOUTS.index("horizontal pair" if axis == "x" else "vertical pair")]


def _requested(prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Requested classes (B, M) and a mask (B, M) of the questions each caption asks."""
    rows = []
    for prompt in prompts:
        scene = parse_caption(prompt)
        if scene is None:
            raise InputError(
                "expected captions of the drawn world, such as "
                '"a small plain red circle above a large striped blue star", but got '
                f'"{prompt}": the attribute checker knows no others; '
                "use another reward or the world's own prompts"
            )
        rows.append([-1 if a is None else a for a in answers(scene)])
    classes = torch.tensor(rows).view(len(rows), len(QUESTIONS))
    return classes.clamp(min=0), classes >= 0


@torch.no_grad()
def _read(images: Tensor, prompts: list[str]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Probabilities of every class, M tensors (B, C_m), and `_requested` on the images' device."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise InputError(
            f"expected images (B, 3, H, W) of floats in [0, 1], got {tuple(images.shape)} of "
            f"{images.dtype}: put channels first and divide bytes by 255"
        )
    if len(images) != len(prompts):
        raise InputError(
            f"expected one prompt per image, got {len(images)} images and {len(prompts)} prompts: "
            "repeat each prompt as often as it has images"
        )
    classes, mask = (t.to(images.device) for t in _requested(prompts))
    images = images.float()
    if len(images) and (images.min() < -0.01 or images.max() > 1.01):
        raise InputError(
            f"expected images in [0, 1], got values from {images.min():.2f} to "
            f"{images.max():.2f}: are they in [-1, 1]? then pass images / 2 + 0.5"
        )
    if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        size = (IMAGE_SIZE, IMAGE_SIZE)
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    with torch.autocast(images.device.type, enabled=False):  # rewards must not vary with dtype
        logits = load_checker().to(images.device)(images)
    return [each.softmax(dim=-1) for each in logits], classes, mask


def attribute_probabilities(images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """How likely each requested attribute is what the image shows.

    `images` (B, 3, H, W) in [0, 1] on any device, resized to 64x64 where they differ; `prompts` B
    captions. Returns probabilities (B, M) and a mask (B, M): columns are `QUESTIONS`, and a caption
    of one object leaves the second slot's columns out (probability 0, mask False).
    Raises InputError for a caption not of this world, or images of another shape or range.
    """
    read, classes, mask = _read(images, prompts)
    picked = [p.gather(1, classes[:, m : m + 1]) for m, p in enumerate(read)]
    return torch.cat(picked, dim=1) * mask, mask


def soft_score(images: Tensor, prompts: list[str]) -> Tensor:
    """Mean probability of the requested attributes (five, or nine for two objects): (B,) in [0, 1].

    Arguments and errors as in `attribute_probabilities`. This is the training reward.
    """
    probabilities, mask = attribute_probabilities(images, prompts)
    return probabilities.sum(dim=1) / mask.sum(dim=1)


def hard_score(images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    """The most likely class of each question against the caption; arguments as in `soft_score`.

    "attributes" (B,): share of requested attributes that are right. "wholly" (B,): 1 where all are.
    """
    read, classes, mask = _read(images, prompts)
    seen = torch.stack([p.argmax(dim=1) for p in read], dim=1)
    right = ((seen == classes) & mask).sum(dim=1)
    asked = mask.sum(dim=1)
    return {"attributes": right / asked, "wholly": (right == asked).float()}
