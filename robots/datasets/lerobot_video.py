"""Frames of one episode out of a video file that holds many."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from offline.errors import InputError


def read_frames(
    video: tuple[Path, float], start: float, steps: int, name: str, shape: tuple[int, ...]
) -> np.ndarray:
    """Decode (steps, height, width, 3) uint8.

    Args:
        video: the file and its frames per second.
        start: the first frame's timestamp, seconds.
        steps: how many frames.
        name: of the episode, for errors.
        shape: (height, width, 3) of a frame, as the dataset declares it.

    Raises:
        InputError: imageio-ffmpeg is missing, or the file is, or ends too soon.
    """
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise InputError(
            'decoding videos needs imageio-ffmpeg: pip install "genpol[sim]"'
        ) from error
    path, fps = video
    if not path.is_file():
        raise InputError(f'{name}: there is no video "{path}"')
    # A quarter of a frame early: timestamps are rounded, and ffmpeg drops what lies before.
    seek = max(0.0, start - 0.25 / fps)
    frames = imageio_ffmpeg.read_frames(
        str(path),
        input_params=[*_only_this_file(path), "-ss", f"{seek:.6f}"],
        output_params=["-frames:v", str(steps)],
    )
    try:
        width, height = next(frames)["size"]
        if (height, width, 3) != shape:
            raise InputError(f'{name}: "{path}" has frames {(height, width, 3)}, expected {shape}')
        found = [np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in frames]
    except (OSError, RuntimeError, StopIteration, IndexError, KeyError) as error:
        reason = " ".join(str(error).split())[-160:] or "it holds no frames"
        raise InputError(f'{name}: cannot decode "{path}": {reason}') from error
    finally:
        frames.close()
    if len(found) != steps:
        raise InputError(
            f'{name}: "{path}" has {len(found)} frames from {start:g} s, expected {steps}'
        )
    return np.stack(found)


def _only_this_file(path: Path) -> list[str]:
    """ffmpeg's options: no playlist, which may name files and addresses elsewhere, is followed."""
    form = ["-f", "mp4"] if path.suffix == ".mp4" else []
    return ["-protocol_whitelist", "file", *form]
