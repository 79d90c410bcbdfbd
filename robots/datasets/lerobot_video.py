"""Frames of one episode out of a video file that holds many.

PyAV decodes where it is installed, else the ffmpeg that imageio-ffmpeg brings. Frames are resized
one by one, so that an episode of large ones never lies in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from offline.errors import InputError
from offline.pictures import resize


@dataclass(frozen=True)
class Clip:
    """The frames of one episode in a video file."""

    path: Path
    fps: float
    start: float
    """The first frame's timestamp, seconds."""
    steps: int
    """How many frames."""
    shape: tuple[int, ...]
    """(height, width, 3) of a stored frame, as the dataset declares it."""


def decoder() -> str:
    """What decodes here: "pyav" or "ffmpeg".

    Raises:
        InputError: neither is installed.
    """
    for module, name in (("av", "pyav"), ("imageio_ffmpeg", "ffmpeg")):
        if find_spec(module) is not None:
            return name
    raise InputError('decoding videos needs PyAV: pip install av, or pip install "genpol[sim]"')


def read_frames(clip: Clip, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode (steps, height, width, 3) uint8.

    Args:
        clip: which frames.
        name: of the episode, for errors.
        size: height and width to resize to; default the stored ones.

    Raises:
        InputError: no decoder is installed, or the file is missing, cut off, or ends too soon.
    """
    decode = {"pyav": _by_pyav, "ffmpeg": _by_ffmpeg}[decoder()]
    if not clip.path.is_file():
        raise InputError(f'{name}: there is no video "{clip.path}"')
    height, width = size or clip.shape[:2]
    found = np.empty((clip.steps, height, width, 3), np.uint8)
    count = 0
    try:
        with closing(decode(clip)) as frames:
            for frame in frames:
                if frame.shape != tuple(clip.shape):
                    raise InputError(
                        f'{name}: "{clip.path}" has frames {frame.shape}, expected '
                        f"{tuple(clip.shape)}"
                    )
                found[count] = resize(frame, (height, width))
                count += 1
    except InputError:
        raise
    except Exception as error:  # whatever a decoder raises of a damaged file
        reason = " ".join(str(error).split())[-160:] or "it holds no frames"
        raise InputError(f'{name}: cannot decode "{clip.path}": {reason}') from error
    if count != clip.steps:
        raise InputError(
            f'{name}: "{clip.path}" has {count} frames from {clip.start:g} s, expected {clip.steps}'
        )
    return found


def _by_pyav(clip: Clip) -> Generator[np.ndarray, None, None]:
    import av

    with av.open(
        str(clip.path), format=_format(clip.path), options={"protocol_whitelist": "file"}
    ) as file:
        stream: Any = file.streams.video[0]
        stream.thread_type = "AUTO"
        early = clip.start - 0.5 / clip.fps  # timestamps are rounded
        file.seek(int(max(0.0, early) / stream.time_base), stream=stream)  # to a keyframe before
        left = clip.steps
        for frame in file.decode(stream):
            if frame.time is None or frame.time < early:
                continue
            yield frame.to_ndarray(format="rgb24")
            left -= 1
            if not left:
                return


def _by_ffmpeg(clip: Clip) -> Generator[np.ndarray, None, None]:
    import imageio_ffmpeg

    # A quarter of a frame early: timestamps are rounded, and ffmpeg drops what lies before.
    seek = max(0.0, clip.start - 0.25 / clip.fps)
    form = _format(clip.path)
    frames = imageio_ffmpeg.read_frames(
        str(clip.path),
        input_params=[
            *("-protocol_whitelist", "file"),
            *(("-f", form) if form else ()),
            *("-ss", f"{seek:.6f}"),
        ],
        output_params=["-frames:v", str(clip.steps)],
    )
    with closing(frames):
        width, height = next(frames)["size"]
        for frame in frames:
            yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)


def _format(path: Path) -> str | None:
    """What the file has to be: no playlist, which may name files elsewhere, is followed."""
    return "mp4" if path.suffix == ".mp4" else None
