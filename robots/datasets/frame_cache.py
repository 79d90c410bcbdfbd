"""Decoded frames on the disk, so that each is decoded once and not in every pass and every run.

    $GENPOL_FRAME_CACHE, else $XDG_CACHE_HOME/genpol/frames, else ~/.cache/genpol/frames
    $GENPOL_FRAME_CACHE_GB   the most that is kept there in GiB, 20 by default; 0 keeps nothing

One .npy file holds the frames of one episode and camera at one size. What was not used for longest
goes first. The files may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from offline.errors import InputError
from offline.files import beside
from robots.datasets.lerobot_video import Clip, decoder

LIMIT, FOLDER = "GENPOL_FRAME_CACHE_GB", "GENPOL_FRAME_CACHE"
DEFAULT_GB = 20.0
_KEEP = 0.9  # of the limit, once it has been passed

log = logging.getLogger(__name__)
_said: set[str] = set()


def folder() -> Path:
    """Where frames are kept."""
    if given := os.environ.get(FOLDER):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "genpol" / "frames"


def limit_bytes() -> int:
    """The most that is kept.

    Raises:
        InputError: the environment variable is no number from 0 on.
    """
    text = os.environ.get(LIMIT, str(DEFAULT_GB))
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < 1e9:
        raise InputError(f'{LIMIT} is "{text[:40]}", expected GiB of disk space, 0 for none')
    return int(gigabytes * 2**30)


def cached(clip: Clip, size: tuple[int, int], decode: Callable[[], np.ndarray]) -> np.ndarray:
    """The frames of a clip, (steps, height, width, 3) uint8: from the disk, or as decoded.

    Args:
        clip: which frames.
        size: their height and width.
        decode: reads them where they are not kept.
    """
    limit, shape = limit_bytes(), (clip.steps, *size, 3)
    path = None if limit == 0 else folder() / _name(clip, size)
    if path is not None and (kept := _load(path, shape)) is not None:
        return kept
    frames = decode()
    if path is not None and 2 * frames.nbytes < limit:
        _store(path, frames, limit)
    return frames


def _name(clip: Clip, size: tuple[int, int]) -> str:
    """Of the file: another one whenever the video is."""
    try:
        found = clip.path.stat()
        version: tuple[int, ...] = (found.st_size, found.st_mtime_ns)
    except OSError:
        version = ()  # decoding says so
    what = (str(clip.path.resolve()), version, clip.fps, clip.start, clip.steps, size, decoder())
    return f"{hashlib.sha256(repr(what).encode()).hexdigest()[:32]}.npy"


def _load(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        found = np.load(path, allow_pickle=False)
        os.utime(path)  # it was used
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == np.uint8 and found.shape == shape else None


def _store(path: Path, frames: np.ndarray, limit: int) -> None:
    """Keep frames. A disk that takes none is said once, and the frames are used all the same."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path) as temporary, open(temporary, "wb") as file:
            np.save(file, frames, allow_pickle=False)
        _once(
            f"decoded frames are kept in {path.parent}, at most {limit / 2**30:g} GiB "
            f"({LIMIT}=0 keeps none)"
        )
        _prune(path.parent, limit)
    except OSError as error:
        _once(f"decoded frames cannot be kept in {path.parent}: {error.strerror or error}")


def _prune(where: Path, limit: int) -> None:
    """Delete what was not used for longest, once there is more than the limit."""
    files = []
    for path in where.glob("*.npy"):
        with suppress(OSError):  # another process may delete, too
            found = path.stat()
            files.append((found.st_mtime_ns, found.st_size, path))
    total = sum(size for _, size, _ in files)
    if total <= limit:
        return
    for _, size, path in sorted(files):
        if total <= _KEEP * limit:
            return
        with suppress(OSError):
            path.unlink()
        total -= size


def _once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        log.warning("%s", text)
