"""An episode as a browser plays it: its pictures as JPEGs, and curves of what is no picture.

    one line of JSON: fps, steps, frames, sizes, curves, prompt, success, human
    the JPEGs, one after the other

`frames` names the JPEG of each of the T + 1 observations, `sizes` their lengths in bytes. Equal
pictures that follow each other, as between the decisions of a recording, are sent once.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from offline.data.episodes import Episode, Episodes

QUALITY = 85  # of a JPEG
GAP = 6  # pixels between cameras
CURVES = 12
"""The first so many of the numbers that an episode without pictures shows."""


def cameras_of(episodes: Episodes) -> list[str]:
    """The observations that are pictures."""
    return [key for key, shape in episodes.obs_shapes.items() if len(shape) == 3]


def film(episode: Episode, cameras: Sequence[str], *, fps: float, height: int) -> bytes:
    """The episode as a browser plays it.

    Args:
        episode: of T steps.
        cameras: observations (T + 1, h, w, 3) uint8, shown side by side.
        fps: observations per second.
        height: pixels; higher pictures are made smaller.
    """
    numbers, jpegs = list[int](), list[bytes]()
    before: list[np.ndarray] = []
    for step in range(len(episode) + 1):
        now = [episode.obs[key][step] for key in cameras]
        if now and not (before and all(map(np.array_equal, now, before))):
            jpegs.append(_jpeg(now, height))
        before = now
        numbers.append(len(jpegs) - 1)
    head: dict[str, Any] = {
        "fps": fps,
        "steps": len(episode),
        "frames": numbers,
        "sizes": [len(jpeg) for jpeg in jpegs],
        "curves": _curves(episode, with_state=not cameras),
        "prompt": episode.language,
        "success": episode.success,
        "human": _stretches(episode.meta.get("intervention")),
    }
    return b"".join([json.dumps(head).encode(), b"\n", *jpegs])


def _jpeg(pictures: Sequence[np.ndarray], height: int) -> bytes:
    tall = min(height, max(picture.shape[0] for picture in pictures))
    each = [_resized(Image.fromarray(picture), tall) for picture in pictures]
    width = sum(picture.width for picture in each) + GAP * (len(each) - 1)
    canvas, left = Image.new("RGB", (width, tall), (29, 29, 31)), 0
    for picture in each:
        canvas.paste(picture, (left, 0))
        left += picture.width + GAP
    out = io.BytesIO()
    canvas.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _resized(picture: Image.Image, height: int) -> Image.Image:
    if picture.height == height:
        return picture
    return picture.resize((max(1, round(picture.width * height / picture.height)), height))


def _curves(episode: Episode, with_state: bool) -> list[dict[str, Any]]:
    """Names and values over time: rewards where they differ, and the state if that is all."""
    found = []
    if np.ptp(episode.rewards) > 0:
        found.append(("reward", episode.rewards))
    if with_state:
        for key, values in episode.obs.items():
            flat = values.reshape(len(values), -1)
            found += [(_name(key, flat.shape[1], i), flat[:, i]) for i in range(flat.shape[1])]
        size = episode.actions.shape[1]
        found += [(_name("action", size, i), episode.actions[:, i]) for i in range(size)]
    return [
        {"name": name, "values": [round(float(value), 5) for value in values]}
        for name, values in found[:CURVES]
    ]


def _name(key: str, size: int, number: int) -> str:
    return f"{key} {number}" if size > 1 else key


def _stretches(flags: Sequence[bool] | None) -> list[tuple[int, int]]:
    """The steps [first, end) at which a human acted."""
    edges = np.flatnonzero(np.diff([0, *map(int, flags or ()), 0])).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
