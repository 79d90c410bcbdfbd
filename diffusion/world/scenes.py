"""Captioned scenes of one or two coloured shapes: sample, describe, parse, draw.

A scene has a first and (maybe) a second object, each with a size, texture, colour and shape, and
either a position (one object) or a relation (two). There are 1,440 + 330,624 scenes, each with
exactly one caption, so a caption is a scene's identity and a hash of it decides the held-out split.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

IMAGE_SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")
PALETTE = {
    "red": (0.86, 0.12, 0.14),
    "green": (0.13, 0.62, 0.22),
    "blue": (0.14, 0.30, 0.86),
    "yellow": (0.96, 0.84, 0.12),
    "purple": (0.52, 0.16, 0.66),
    "orange": (0.96, 0.50, 0.06),
    "cyan": (0.12, 0.76, 0.82),
    "pink": (0.96, 0.52, 0.74),
}
COLOURS = tuple(PALETTE)
RADIUS = {"small": 8.5, "large": 14.0}  # pixels
POSITIONS = {  # where a lone object stands: words -> (x, y) of its centre, pixels
    "on the left": (16.5, 32.0),
    "on the right": (47.5, 32.0),
    "at the top": (32.0, 16.5),
    "at the bottom": (32.0, 47.5),
    "in the center": (32.0, 32.0),
}
RELATIONS = {  # words -> (which object comes first along the axis, axis)
    "to the left of": (0, "x"),
    "to the right of": (1, "x"),
    "above": (0, "y"),
    "below": (1, "y"),
}
ANY = "any"  # what a caption leaves open


@dataclass(frozen=True)
class Thing:
    """One object; ANY where a caption leaves an attribute open (such a one cannot be drawn)."""

    size: str
    texture: str
    colour: str
    shape: str

    def words(self) -> str:
        parts = ("a", self.size, self.texture, self.colour, self.shape)
        return " ".join(part for part in parts if part != ANY)


@dataclass(frozen=True)
class Scene:
    """One object with a position, or two with a relation ("first RELATION second")."""

    first: Thing
    second: Thing | None
    place: str

    def caption(self) -> str:
        if self.place == ANY:
            return self.first.words()
        tail = self.place if self.second is None else f"{self.place} {self.second.words()}"
        return f"{self.first.words()} {tail}"

    def slots(self) -> list[tuple[Thing, tuple[float, float]]]:
        """Objects with their nominal centres, leftmost or topmost first."""
        if self.second is None:
            return [(self.first, POSITIONS.get(self.place, POSITIONS["in the center"]))]
        index, axis = RELATIONS[self.place]
        ordered = [self.first, self.second] if index == 0 else [self.second, self.first]
        centres = [(16.5, 32.0), (47.5, 32.0)] if axis == "x" else [(32.0, 16.5), (32.0, 47.5)]
        return list(zip(ordered, centres, strict=True))


def _choice(rng: np.random.Generator, items) -> str:
    return items[int(rng.integers(len(items)))]


def sample_thing(rng: np.random.Generator) -> Thing:
    return Thing(
        _choice(rng, SIZES), _choice(rng, TEXTURES), _choice(rng, COLOURS), _choice(rng, SHAPES)
    )


def sample_scene(rng: np.random.Generator, two_objects: float = 0.5) -> Scene:
    """Draw a scene; with probability `two_objects` it has two (never two alike)."""
    first = sample_thing(rng)
    if rng.random() >= two_objects:
        return Scene(first, None, _choice(rng, tuple(POSITIONS)))
    second = sample_thing(rng)
    while second == first:
        second = sample_thing(rng)
    return Scene(first, second, _choice(rng, tuple(RELATIONS)))


def is_held_out(caption: str, fraction: float = 0.1) -> bool:
    """Whether a caption belongs to the held-out split: by hash, so it never moves."""
    digest = hashlib.sha256(caption.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def sample_caption(rng: np.random.Generator, held_out: bool) -> str:
    """A caption from the training split, or from the held-out one."""
    while True:
        caption = sample_scene(rng).caption()
        if is_held_out(caption) == held_out:
            return caption


def _parse_thing(words: list[str]) -> Thing | None:
    if words[:1] not in (["a"], ["an"]):
        return None
    rest, picked = words[1:], []
    for known in (SIZES, TEXTURES, COLOURS):
        picked.append(rest.pop(0) if rest and rest[0] in known else ANY)
    if len(rest) != 1 or rest[0] not in SHAPES:
        return None
    size, texture, colour = picked
    return Thing(size, texture, colour, rest[0])


def parse_caption(caption: str) -> Scene | None:
    """The scene a caption describes, or None where the caption is not of this world.

    Whatever a caption leaves out ("an orange star on the left") is ANY: not asked for.
    """
    text = " ".join(caption.lower().rstrip(". ").split())
    for relation in RELATIONS:
        head, found, tail = text.partition(f" {relation} ")
        if found:
            first, second = _parse_thing(head.split()), _parse_thing(tail.split())
            return Scene(first, second, relation) if first and second else None
    place = next((p for p in POSITIONS if text.endswith(f" {p}")), ANY)
    lone = _parse_thing(text.removesuffix("" if place == ANY else place).split())
    return Scene(lone, None, place) if lone else None


# ---------------------------------------------------------------------------------------------
# Drawing: signed distances in pixels, anti-aliased over one pixel.


def shape_distance(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Signed distance (pixels, negative inside) to a shape of nominal radius `r` at the origin."""
    if shape == "circle":
        return np.hypot(x, y) - r
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.84 * r
    if shape == "triangle":  # equilateral, apex up (y grows downwards)
        inner = 0.56 * r
        slanted = abs(x) * np.sqrt(3) / 2 - (y - 0.22 * r) / 2
        return np.maximum(slanted - inner, (y - 0.22 * r) - inner)
    if shape == "cross":
        arm, half = r, 0.36 * r
        upright = np.maximum(abs(x) - half, abs(y) - arm)
        level = np.maximum(abs(x) - arm, abs(y) - half)
        return np.minimum(upright, level)
    if shape == "ring":
        return abs(np.hypot(x, y) - 0.71 * r) - 0.29 * r
    if shape == "star":  # five points, folded into one half-point
        radius, angle = np.hypot(x, y), np.arctan2(x, -y)
        folded = abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        px, py = radius * np.sin(folded), radius * np.cos(folded)
        outer, notch = 1.15 * r, 0.50 * r
        bx, by = notch * np.sin(np.pi / 5), notch * np.cos(np.pi / 5)
        ex, ey = bx, by - outer
        length = np.hypot(ex, ey)
        return (px * (-ey) + (py - outer) * ex) / length
    raise ValueError(f"unknown shape {shape!r}")


_YY, _XX = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) + 0.5


def _texture_mask(texture: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Share of the dark second tone at each pixel, in [0, 1]."""
    if texture == "plain":
        return np.zeros_like(x)
    period = 0.30 * r + 3.6
    if texture == "striped":
        phase = (x + y) / np.sqrt(2) / period * 2 * np.pi
        return np.clip(0.5 + 1.6 * np.cos(phase) * period / 6, 0, 1)
    u = (x + period / 2) % period - period / 2
    v = (y + period / 2) % period - period / 2
    return np.clip(0.5 + 0.30 * period - np.hypot(u, v), 0, 1)


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene: (64, 64, 3) float32 in [0, 1]; position, size and tint vary a little."""
    image: np.ndarray = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), rng.uniform(0.86, 0.96), np.float32)
    for thing, (cx, cy) in scene.slots():
        r = RADIUS[thing.size] * rng.uniform(0.95, 1.05)
        x = _XX - np.float32(cx + rng.uniform(-1.5, 1.5))
        y = _YY - np.float32(cy + rng.uniform(-1.5, 1.5))
        alpha = np.clip(0.5 - shape_distance(thing.shape, x, y, r), 0, 1)[..., None]
        base = np.array(PALETTE[thing.colour], np.float32) + rng.uniform(-0.03, 0.03, 3)
        dark = _texture_mask(thing.texture, x, y, r)[..., None]
        colour = base * (1 - 0.62 * dark)
        image = image * (1 - alpha) + colour * alpha
    return np.clip(image, 0, 1).astype(np.float32)
