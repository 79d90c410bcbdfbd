"""Films of episodes: side by side, with captions, the value, and the candidates that were rejected.

Under each frame, the candidates' values at every decision so far (grey dots) and the chosen one's
(blue line). In the frame's corner, where each candidate of the decision in force would go: its
displacement summed over the chunk, seen from above (first two action dimensions), chosen in blue.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from offline.errors import InputError
from offline.files import beside

Frames = NDArray[np.uint8]  # (T, height, width, 3)
BLUE, GREY, INK, PAPER = (10, 102, 194), (168, 168, 174), (29, 29, 31), (255, 255, 255)
BAR, TRACE, GAP = 26, 84, 8  # pixels: caption above, value trace below, between episodes
SMOOTH = 2  # charts are drawn so many times larger, then shrunk


@dataclass
class Recording:
    """What a video needs of one episode."""

    frames: list[np.ndarray] = field(default_factory=list)
    """One (height, width, 3) uint8 picture before each step and one after the last."""
    decisions: list[dict[str, np.ndarray]] = field(default_factory=list)
    """For each frame, the decision in force: candidates (K,H,A) in the environment's units, scores
    (K,), chosen; empty for an arm that does not score."""


def write_video(path: Path, frames: Frames | Sequence[np.ndarray], fps: int = 20) -> Path:
    """Write an mp4; a GIF, with a line saying so, where ffmpeg is missing.

    Args:
        path: ends in .mp4.
        frames: (T, height, width, 3) uint8.
        fps: frames a second.

    Returns:
        The file written. It replaces an old one only when whole.

    Raises:
        InputError: there are no frames, or they are not uint8 pictures of one size.
    """
    film = _checked(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as missing:
        print(
            f'note: no ffmpeg ({missing}), so films are GIFs; pip install "genpol[sim]" for mp4',
            file=sys.stderr,
        )
        return _write_gif(path.with_suffix(".gif"), film, fps)
    even = film[:, : film.shape[1] // 2 * 2, : film.shape[2] // 2 * 2]  # the codec's condition
    with beside(path) as partial:
        imageio.mimwrite(
            partial, list(even), fps=fps, codec="libx264", quality=7, macro_block_size=2
        )
    return path


def _write_gif(path: Path, film: Frames, fps: int) -> Path:
    pictures = [Image.fromarray(frame).quantize(128) for frame in film]
    with beside(path) as partial:
        pictures[0].save(
            partial,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 / fps),
            loop=0,
        )
    return path


def side_by_side(films: Sequence[Frames], captions: Sequence[str]) -> Frames:
    """Films next to each other, a caption above each; those that end first stay on their last.

    Args:
        films: each (T_i, h_i, w_i, 3).
        captions: one each.

    Returns:
        (max T, max h + bar, sum of w + gaps, 3).
    """
    if len(films) != len(captions) or not films:
        raise InputError(f"expected one caption for each of {len(films)} films")
    films = [_checked(film) for film in films]
    steps, height = max(map(len, films)), max(film.shape[1] for film in films)
    width = sum(film.shape[2] for film in films) + GAP * (len(films) - 1)
    canvas = np.full((steps, BAR + height, width, 3), 255, np.uint8)
    left = 0
    for film, caption in zip(films, captions, strict=True):
        here = slice(left, left + film.shape[2])
        canvas[:, :BAR, here] = _caption(caption, film.shape[2])
        canvas[: len(film), BAR : BAR + film.shape[1], here] = film
        canvas[len(film) :, BAR : BAR + film.shape[1], here] = film[-1]
        left += film.shape[2] + GAP
    return canvas


def overlay(recording: Recording, *, least_width: int = 240) -> Frames:
    """The episode's frames with value trace and candidates drawn in: (T, h + trace, w, 3).

    An arm that does not score has an empty trace, so that films keep one size. Small frames are
    enlarged to `least_width`.
    """
    film = _checked(recording.frames)
    factor = max(1, -(-least_width // film.shape[2]))
    film = film.repeat(factor, 1).repeat(factor, 2)
    width = film.shape[2]
    decisions = list(recording.decisions)[: len(film)]
    decisions += [{}] * (len(film) - len(decisions))
    starts = [
        i for i, now in enumerate(decisions) if now and (i == 0 or _differs(now, decisions[i - 1]))
    ]
    out = np.full((len(film), film.shape[1] + TRACE, width, 3), 255, np.uint8)
    out[:, : film.shape[1]] = film
    if not starts:
        out[:, film.shape[1] :] = _note("no value: the policy's own sample", width)
        return out
    ends = [np.abs(_paths(decisions[i]["candidates"])[:, 1:]).max((1, 2)) for i in starts]
    reach = float(np.percentile(np.concatenate(ends), 90))  # a few far ones may leave the picture
    side = min(width, film.shape[1]) // 3
    trace, inset, shown = None, None, -1
    for t, now in enumerate(decisions):
        begun = sum(start <= t for start in starts)
        if trace is None or begun != shown:
            drawn = starts[:begun]
            trace = _trace([decisions[i] for i in drawn], drawn, starts, decisions, width)
            inset = _fan(now, reach, side) if now else None
            shown = begun
        out[t, film.shape[1] :] = trace
        if inset is not None and now:
            out[t, 6 : 6 + side, width - side - 6 : width - 6] = inset
    return out


def film_pair(base: Recording, steered: Recording, captions: Sequence[str]) -> Frames:
    """Two episodes from the same initial state, each with its overlay."""
    return side_by_side([overlay(base), overlay(steered)], captions)


# -- drawing --------------------------------------------------------------------------------------


def _trace(
    decisions: list[dict[str, np.ndarray]],
    times: list[int],
    starts: list[int],
    film: list[dict[str, np.ndarray]],
    width: int,
) -> np.ndarray:
    """The chart of values up to now; its axes span the whole film."""
    everything = np.concatenate([film[i]["scores"] for i in starts])
    everything = everything[np.isfinite(everything)]
    low, high = (everything.min(), everything.max()) if len(everything) else (0.0, 1.0)
    span = max(float(high - low), 1e-9)
    canvas = Image.new("RGB", (width * SMOOTH, TRACE * SMOOTH), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(10 * SMOOTH)
    left, right, top, bottom = (v * SMOOTH for v in (40, width - 10, 10, TRACE - 10))

    def place(t: int, value: float) -> tuple[float, float]:
        x = left + (right - left) * t / max(len(film) - 1, 1)
        y = bottom - (bottom - top) * (min(max(value, low), high) - low) / span
        return x, y

    for value, y in ((high, top), (low, bottom)):
        pen.line([(left, y), (right, y)], fill=(226, 226, 222), width=1)
        pen.text((left - 4 * SMOOTH, y), f"{value:.3g}", fill=GREY, font=font, anchor="rm")
    pen.text((4 * SMOOTH, TRACE * SMOOTH / 2), "value", fill=INK, font=font, anchor="lm")
    line = []
    for t, decision in zip(times, decisions, strict=True):
        scores, chosen = decision["scores"], int(decision["chosen"])
        for value in np.delete(scores, chosen):
            if np.isfinite(value):
                _dot(pen, place(t, float(value)), 1.2 * SMOOTH, GREY)
        if np.isfinite(scores[chosen]):
            line.append(place(t, float(scores[chosen])))
    if len(line) > 1:
        pen.line(line, fill=BLUE, width=2 * SMOOTH, joint="curve")
    for point in line:
        _dot(pen, point, 2.2 * SMOOTH, BLUE)
    return _shrink(canvas)


def _fan(decision: dict[str, np.ndarray], reach: float, side: int) -> np.ndarray:
    """Where each candidate would go, from the centre; `reach` is the half-width of the picture."""
    canvas = Image.new("RGB", (side * SMOOTH, side * SMOOTH), PAPER)
    pen = ImageDraw.Draw(canvas)
    half = side * SMOOTH / 2
    scale = 0.85 * half / max(reach, 1e-9)
    paths, chosen = _paths(decision["candidates"]), int(decision["chosen"])

    def points(path: np.ndarray) -> list[tuple[float, float]]:
        return [(half + scale * x, half - scale * y) for x, y in path]

    for k, path in enumerate(paths):
        if k != chosen:
            pen.line(points(path), fill=GREY, width=SMOOTH + 1)
    pen.line(points(paths[chosen]), fill=BLUE, width=2 * SMOOTH)
    _dot(pen, points(paths[chosen])[-1], 2.5 * SMOOTH, BLUE)
    _dot(pen, (half, half), 2 * SMOOTH, INK)
    font = ImageFont.load_default(9 * SMOOTH)
    pen.text((4 * SMOOTH, 3 * SMOOTH), "from above", fill=GREY, font=font)
    pen.rectangle([0, 0, side * SMOOTH - 1, side * SMOOTH - 1], outline=GREY, width=SMOOTH)
    return _shrink(canvas)


def _paths(candidates: np.ndarray) -> np.ndarray:
    """(K, H, A) -> (K, H + 1, 2): summed displacement after each action of the chunk."""
    plane = np.asarray(candidates, float)[..., :2]
    if plane.shape[-1] == 1:
        plane = np.concatenate([plane, np.zeros_like(plane)], -1)
    steps = plane.cumsum(1)
    return np.concatenate([np.zeros_like(steps[:, :1]), steps], 1)


def _differs(now: dict[str, np.ndarray], before: dict[str, np.ndarray]) -> bool:
    """Whether a new decision came into force; the frames of a chunk share theirs."""
    return not before or any(not np.array_equal(now[key], before[key]) for key in now)


def _dot(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], radius: float, colour: tuple[int, int, int]
) -> None:
    x, y = at
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def _caption(text: str, width: int) -> np.ndarray:
    canvas = Image.new("RGB", (width, BAR), PAPER)
    pen, size = ImageDraw.Draw(canvas), 14
    while size > 8 and pen.textlength(text, font=ImageFont.load_default(size)) > width - 8:
        size -= 1
    pen.text((4, BAR / 2), text, fill=INK, font=ImageFont.load_default(size), anchor="lm")
    return np.asarray(canvas)


def _note(text: str, width: int) -> np.ndarray:
    canvas = Image.new("RGB", (width, TRACE), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    pen.text((width / 2, TRACE / 2), text, fill=GREY, font=font, anchor="mm")
    return np.asarray(canvas)


def _shrink(canvas: Image.Image) -> np.ndarray:
    size = (canvas.width // SMOOTH, canvas.height // SMOOTH)
    return np.asarray(canvas.resize(size, Image.Resampling.LANCZOS))


def _checked(frames: Frames | Sequence[np.ndarray]) -> Frames:
    try:
        film = np.asarray(frames)
    except ValueError:  # of several sizes
        film = np.empty(0)
    if film.ndim != 4 or film.shape[-1] != 3 or film.dtype != np.uint8 or len(film) == 0:
        raise InputError(
            "a film needs uint8 frames (T, height, width, 3) of one size, received "
            f"{film.dtype} {film.shape}"
        )
    return film
