"""Writes an episode's pictures of one camera as a video, for LeRobot and for browsers."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from offline.errors import InputError
from robots.recording.features import pixels

QUALITY = "20"  # x264's constant rate factor; lower is better
GROUP = "2"  # every second frame stands alone, so that one can be read without those before it


def has_encoder() -> bool:
    """Whether pictures can be encoded."""
    return find_spec("imageio_ffmpeg") is not None


def write_film(
    path: Path, frames: Iterable[np.ndarray], shape: tuple[int, ...], fps: float
) -> None:
    """Encode (height, width, 3) uint8 frames as H.264 in an mp4 file.

    Raises:
        InputError: a frame has another shape, or ffmpeg fails.
    """
    import imageio_ffmpeg

    height, width, _ = shape
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec="libx264",
        pix_fmt_out=pixels(shape),
        quality=None,
        macro_block_size=1,
        ffmpeg_log_level="error",
        output_params=["-crf", QUALITY, "-g", GROUP, "-preset", "veryfast", "-threads", "1"],
    )
    writer.send(None)
    try:
        for frame in frames:
            if frame.shape != shape:
                raise InputError(f"a picture is {frame.shape}, those before it {shape}")
            writer.send(np.ascontiguousarray(frame))
    except OSError as error:
        raise InputError(f'cannot write "{path}": {" ".join(str(error).split())[-160:]}') from error
    finally:
        writer.close()
