"""Decoded frames on the disk: decoded once, bounded, and gone without harm."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest

from offline.errors import InputError
from robots.datasets import frame_cache
from robots.datasets.frame_cache import FOLDER, LIMIT, cached
from robots.datasets.lerobot_video import Clip


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """(folder, a function that asks for a clip and says whether it was decoded)."""
    folder = tmp_path / "frames"
    monkeypatch.setenv(FOLDER, str(folder))
    monkeypatch.setenv(LIMIT, "1")
    monkeypatch.setattr(frame_cache, "_said", set())
    video = tmp_path / "a.mp4"
    video.write_bytes(b"video")

    def ask(start=0.0, size=(4, 6), steps=3) -> bool:
        decoded = []

        def decode():
            decoded.append(True)
            return np.full((steps, *size, 3), 7 + int(start), np.uint8)

        frames = cached(Clip(video, 10.0, start, steps, (8, 12, 3)), size, decode)
        assert frames.shape == (steps, *size, 3) and (frames == 7 + int(start)).all()
        return bool(decoded)

    return folder, video, ask


def test_frames_are_decoded_once_for_each_clip_size_and_file(keep, caplog):
    folder, video, ask = keep
    with caplog.at_level(logging.WARNING):
        assert [ask(), ask(), ask(1.0), ask(1.0), ask(size=(2, 2)), ask()] == [
            True, False, True, False, True, False,
        ]  # fmt: skip
    assert len(caplog.messages) == 1 and str(folder) in caplog.messages[0]
    video.write_bytes(b"another video")
    assert ask() and not ask()


def test_damage_is_decoded_again(keep):
    folder, _, ask = keep
    assert ask()
    (path,) = folder.glob("*.npy")
    path.write_bytes(path.read_bytes()[:-5])
    assert ask() and not ask()
    np.save(path, np.zeros((3, 4, 6, 3), np.float32))
    assert ask() and not ask()


def test_what_was_not_used_for_longest_goes_first(keep, monkeypatch):
    folder, _, ask = keep
    size = (100, 100)  # 30 kB a frame
    monkeypatch.setenv(LIMIT, str(500_000 / 2**30))
    for start in range(5):  # 90 kB each, 450 kB in all
        assert ask(float(start), size)
    for age, path in enumerate(sorted(folder.glob("*.npy"), key=lambda p: p.stat().st_mtime_ns)):
        os.utime(path, (age + 1, age + 1))
    assert not ask(0.0, size)  # now it was used last
    assert ask(5.0, size)  # which is too much: of 540 kB, 450 kB may stay
    assert len(list(folder.glob("*.npy"))) == 4
    assert [ask(float(start), size) for start in (0, 5)] == [False, False]
    assert ask(1.0, size)


def test_none_is_kept_where_none_may_be(keep, monkeypatch, caplog):
    folder, _, ask = keep
    monkeypatch.setenv(LIMIT, "0")
    assert ask() and ask() and not folder.exists()
    monkeypatch.setenv(LIMIT, "much")
    with pytest.raises(InputError, match='GENPOL_FRAME_CACHE_GB is "much"'):
        ask()
    monkeypatch.setenv(LIMIT, "1")
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert ask() and ask()
    assert sum("cannot be kept" in line for line in caplog.messages) == 1
