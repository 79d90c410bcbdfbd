"""Finds the objects in an image by rules on its pixels, for the gold checker.

Foreground is what differs from the border's median colour; each connected piece is compared with
silhouettes of the six shapes, and its inside with stripe and dot patterns of any phase.

Shape suffixes: R radii, S shifts, P pixels of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from diffusion.world.scenes import (
    COLOURS,
    IMAGE_SIZE,
    PALETTE,
    RADIUS,
    SHAPES,
    shape_distance,
)

# Distances are in pixels, colour distances Euclidean in [0, 1] RGB.
CONTRAST = 0.18  # a foreground pixel differs from the background by more than this
MIN_PIXELS = 30  # smaller pieces are fragments, not objects
LONGEST = 38.0  # a longer piece is two touching objects (the largest single one spans 34)
# A silhouette that fits its best shape less than this is a blob. Blobs come out round and, less
# often, square, and a true circle or square fits well: those limits are the tightest.
MIN_IOU = {
    "circle": 0.92,
    "square": 0.86,
    "triangle": 0.84,
    "cross": 0.84,
    "ring": 0.82,
    "star": 0.80,
}
MAX_EDGE_WIDTH = 2.3  # pixels; a wider, fading edge makes a smudge. Drawn edges have 0.7
MAX_ROUND_EDGE_WIDTH = 2.0  # for a circle: what every smudge of several shapes looks like
MAX_COLOUR_DISTANCE = 0.18  # farther from every palette entry is a muddy colour
MIN_COLOUR_SHARE = 0.20  # of the inside; stripes leave about half bright
FAINTEST = 0.6  # the lowest contrast of a pattern, as a share of the drawn one
MIN_CORRELATION = 0.55  # of an inside with its best stripe or dot pattern
SMALLEST_LARGE = (RADIUS["small"] + RADIUS["large"]) / 2

_HALF = 21  # patches are 42 x 42 around the rounded centroid: room for a star of radius 17.5
_RADII = np.arange(5.0, 17.6, 0.5)
_SHIFTS = np.arange(-1.0, 1.1, 0.5)
_PERIODS = np.arange(5.0, 9.3, 0.35)  # of textures; scenes use 0.30 r + 3.6


@dataclass(frozen=True)
class Found:
    """One object in an image; None where an attribute is not recognisable.

    centre: (x, y) in pixels. iou: of the silhouette with the best-fitting shape.
    edge_width: in pixels, of the fading between background and object.
    """

    size: str
    texture: str | None
    colour: str | None
    shape: str | None
    centre: tuple[float, float]
    radius: float
    iou: float
    edge_width: float


# ---------------------------------------------------------------------------------------------
# Template banks, built once.


def _grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[-_HALF:_HALF, -_HALF:_HALF].astype(np.float32) + 0.5
    return x, y


@lru_cache(maxsize=1)
def _silhouettes() -> dict[str, tuple[np.ndarray, np.ndarray, float, float]]:
    """Per shape: templates (R, S, P), their areas (R, S), area / r^2, centroid y / r.

    Every template's centroid, not its nominal centre, is at the patch's centre plus the shift.
    """
    fine_y, fine_x = np.mgrid[-1.2:1.2:0.005, -1.2:1.2:0.005]
    x, y = _grid()
    dy, dx = (s.reshape(-1, 1, 1) for s in np.meshgrid(_SHIFTS, _SHIFTS, indexing="ij"))
    banks = {}
    for shape in SHAPES:
        inside = shape_distance(shape, fine_x, fine_y, 1.0) < 0
        area, drop = inside.sum() * 0.005**2, float(fine_y[inside].mean())
        stack = np.stack([shape_distance(shape, x - dx, y - dy + drop * r, r) for r in _RADII])
        bank = (stack < 0).astype(np.float32).reshape(len(_RADII), _SHIFTS.size**2, -1)
        banks[shape] = (bank, bank.sum(-1), float(area), drop)
    return banks


@lru_cache(maxsize=1)
def _patterns() -> dict[str, np.ndarray]:
    """Darkness in [0, 1] of "striped" and "dotted", any phase: (periods, phases, P) each."""
    x, y = _grid()
    striped, dotted = [], []
    for period in _PERIODS:
        turns = (x + y) / np.sqrt(2) / period
        waves = [np.cos(2 * np.pi * (turns + k / 16)) for k in range(16)]
        striped.append([np.clip(0.5 + 1.6 * wave * period / 6, 0, 1) for wave in waves])
        phases = period * np.arange(8) / 8
        u = (x + phases[:, None, None]) % period - period / 2
        v = (y + phases[:, None, None]) % period - period / 2
        gap = np.hypot(u[:, None], v[None])
        dotted.append(np.clip(0.5 + 0.30 * period - gap, 0, 1).reshape(64, *x.shape))
    return {
        name: np.asarray(bank, np.float32).reshape(len(_PERIODS), -1, x.size)
        for name, bank in (("striped", striped), ("dotted", dotted))
    }


# ---------------------------------------------------------------------------------------------
# From pixels to objects.


def _background(image: np.ndarray) -> np.ndarray:
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    return np.median(border, 0)


def _pieces(image: np.ndarray, background: np.ndarray) -> list[np.ndarray]:
    """Foreground masks (64, 64), largest first, one per connected piece."""
    distance = np.linalg.norm(image - background, axis=-1)
    labels, _ = ndimage.label(distance > CONTRAST)
    areas = np.bincount(labels.ravel())
    big = [label for label in range(1, len(areas)) if areas[label] >= MIN_PIXELS]
    crumbs = (labels > 0) & ~np.isin(labels, big)
    pieces = []
    for label in big:
        piece = labels == label
        if crumbs.any():  # a star's tip or a last dot belongs to the object beside it
            piece |= crumbs & ndimage.binary_dilation(piece, iterations=2)
        # An edge lies at half the object's own contrast, so that blur moves it little. The low
        # percentile is the bright tone even where half the object is dark.
        edge = max(CONTRAST, 0.5 * float(np.percentile(distance[piece], 30)))
        sharp, count = ndimage.label(piece & (distance > edge))
        parts = [sharp == k for k in range(1, count + 1)]
        whole = [part for part in parts if part.sum() >= MIN_PIXELS]
        pieces += whole if len(whole) > 1 else [piece & (distance > edge)] if whole else []
    return sorted(pieces, key=lambda piece: -int(piece.sum()))


def _patch(mask: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The centroid, rounded, as (x, y), and the 42 x 42 patch around it, zero outside."""
    ys, xs = np.nonzero(mask)
    cx, cy = round(float(xs.mean()) + 0.5), round(float(ys.mean()) + 0.5)
    return _cut(mask, (cx, cy)), (cx, cy)


def _cut(array: np.ndarray, centre: tuple[int, int]) -> np.ndarray:
    cx, cy = centre
    padded = np.zeros((IMAGE_SIZE + 2 * _HALF,) * 2, np.float32)
    padded[_HALF:-_HALF, _HALF:-_HALF] = array
    return padded[cy : cy + 2 * _HALF, cx : cx + 2 * _HALF]


def _fit(mask: np.ndarray) -> tuple[str, float, float, tuple[float, float]]:
    """Best shape, its IoU, radius and centre (x, y), for a mask (64, 64)."""
    patch, (cx, cy) = _patch(mask)
    pixels, area = patch.ravel(), float(mask.sum())
    best = ("", -1.0, 0.0, (0.0, 0.0))
    for shape, (bank, areas, unit_area, drop) in _silhouettes().items():
        guess = int(np.abs(_RADII - np.sqrt(area / unit_area)).argmin())
        low = min(max(guess - 2, 0), len(_RADII) - 5)  # the area gives the radius within 1 px
        chosen = bank[low : low + 5]
        common = (chosen.reshape(-1, pixels.size) @ pixels).reshape(chosen.shape[:2])
        iou = common / (areas[low : low + 5] + area - common)
        r, s = np.unravel_index(int(iou.argmax()), iou.shape)
        if iou[r, s] > best[1]:
            radius = float(_RADII[low + r])
            dy, dx = _SHIFTS[s // len(_SHIFTS)], _SHIFTS[s % len(_SHIFTS)]
            centre = (float(cx + dx), float(cy + dy - drop * radius))
            best = (shape, float(iou[r, s]), radius, centre)
    return best


def _separate(mask: np.ndarray) -> list[np.ndarray]:
    """Cut a piece too long for one object where its two parts fit shapes best."""
    ys, xs = np.nonzero(mask)
    spans = {0: ys.max() - ys.min() + 1, 1: xs.max() - xs.min() + 1}
    axis = max(spans, key=lambda a: int(spans[a]))
    if spans[axis] <= LONGEST:
        return [mask]
    start = int((ys if axis == 0 else xs).min())
    index = np.arange(IMAGE_SIZE)
    index = index[:, None] if axis == 0 else index[None]
    middle = start + int(spans[axis]) // 2
    cuts = [(mask & (index < cut), mask & (index >= cut)) for cut in range(middle - 7, middle + 8)]
    cuts = [parts for parts in cuts if min(part.sum() for part in parts) >= MIN_PIXELS]
    if not cuts:
        return [mask]
    return list(max(cuts, key=lambda parts: sum(_fit(part)[1] for part in parts)))


def _inside(mask: np.ndarray) -> np.ndarray:
    """The mask less its edge pixels, which the background tints."""
    inner = ndimage.binary_erosion(mask)
    return inner if inner.sum() >= 12 else mask


def _texture(darkness: np.ndarray, inner: np.ndarray, radius: float) -> str | None:
    """The pattern nearest in squared error, if near enough; `darkness` 1 is the dark tone."""
    ys, xs = np.nonzero(inner)
    centre = (round(float(xs.mean()) + 0.5), round(float(ys.mean()) + 0.5))
    weight = _cut(inner, centre).ravel() / inner.sum()
    dark = _cut(np.where(inner, darkness, 0), centre).ravel()
    mean, square = float(weight @ dark), float(weight @ dark**2)
    best, error, correlation = "plain", square, 1.0
    low = int(np.abs(_PERIODS - (0.30 * radius + 3.6)).argmin()) - 1
    low = min(max(low, 0), len(_PERIODS) - 3)
    seen = weight > 0
    weight, dark = weight[seen], dark[seen]
    for name, bank in _patterns().items():
        pattern = bank[low : low + 3].reshape(-1, seen.size)[:, seen]
        cross, means, squares = pattern @ (weight * dark), pattern @ weight, pattern**2 @ weight
        # Blur fades a pattern: it may have down to FAINTEST of the drawn contrast.
        contrast = np.clip(cross / np.maximum(squares, 1e-9), FAINTEST, 1)
        errors = square - 2 * contrast * cross + contrast**2 * squares
        k = int(errors.argmin())
        if errors[k] < error:
            spread = (square - mean**2) * (squares[k] - means[k] ** 2)
            correlation = float((cross[k] - mean * means[k]) / np.sqrt(max(spread, 1e-9)))
            best, error = name, float(errors[k])
    if best == "plain":
        return best if error < 0.06 else None
    return best if correlation >= MIN_CORRELATION else None


def _colour(pixels: np.ndarray) -> tuple[str | None, np.ndarray]:
    """The palette's colour most common in pixels (N, 3), if common enough, and its bright tone.

    Pixels vote, because a median would mix in the dark tone and edges tinted by the background.
    """
    away = np.linalg.norm(pixels[:, None] - np.asarray(list(PALETTE.values())), axis=-1)
    nearest = np.where(away.min(-1) <= MAX_COLOUR_DISTANCE, away.argmin(-1), len(COLOURS))
    votes = np.bincount(nearest, minlength=len(COLOURS))[: len(COLOURS)]
    winner = int(votes.argmax())
    if votes[winner] >= MIN_COLOUR_SHARE * len(pixels):
        return COLOURS[winner], np.median(pixels[nearest == winner], 0)
    light = pixels.sum(-1)
    return None, np.median(pixels[light >= np.percentile(light, 60)], 0)


def _edge_width(image: np.ndarray, mask: np.ndarray, base: np.ndarray, ground: np.ndarray) -> float:
    """Pixels between background and object colour (20 to 80 % of the way) per pixel of outline."""
    step = base - ground
    share = (image - ground) @ step / max(float(step @ step), 1e-6)  # the dark tone is beyond 1
    between = (share > 0.2) & (share < 0.8) & ndimage.binary_dilation(mask, iterations=3)
    return float(between.sum() / (mask & ~ndimage.binary_erosion(mask)).sum())


def _describe(image: np.ndarray, mask: np.ndarray, background: np.ndarray) -> Found:
    shape, iou, radius, centre = _fit(mask)
    inner = _inside(mask)
    colour, base = _colour(image[inner])
    width = _edge_width(image, mask, base, background)
    limit = MAX_ROUND_EDGE_WIDTH if shape == "circle" else MAX_EDGE_WIDTH
    tone = image @ base / max(float(base @ base), 1e-6)  # 1 in the bright tone, 0.38 in the dark
    darkness = np.clip((1 - tone) / 0.62, 0, 1)
    return Found(
        size="large" if radius > SMALLEST_LARGE else "small",
        texture=_texture(darkness, inner, radius),
        colour=colour,
        shape=shape if iou >= MIN_IOU[shape] and width <= limit else None,
        centre=centre,
        radius=radius,
        iou=iou,
        edge_width=width,
    )


def find_objects(image: np.ndarray) -> list[Found]:
    """Every object in an image (64, 64, 3) in [0, 1], largest first."""
    if not np.isfinite(image).all():
        return []
    image = np.asarray(image, np.float32)
    background = _background(image)
    parts = [part for piece in _pieces(image, background) for part in _separate(piece)]
    return [_describe(image, part, background) for part in parts]
