"""Films: sizes, who is blue and who is grey, and the file that is written."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
from PIL import Image

from genpol.reports.videos import (
    BAR,
    BLUE,
    GAP,
    TRACE,
    Recording,
    overlay,
    side_by_side,
    write_video,
)
from offline.errors import InputError


def recording(steps: int = 8, scored: bool = True, size: int = 240) -> Recording:
    """Chunks of 4; candidate 1, which goes right, is chosen among left, right, up."""
    made = Recording()
    ways = np.array([[-1.0, 0, 0], [1, 0, 0], [0, 1, 0]])[:, None].repeat(4, 1)
    for t in range(steps + 1):
        now = {
            "candidates": ways,
            "scores": np.array([0.0, 1.0, 0.5]) + t // 4,
            "chosen": np.asarray(1),
        }
        made.frames.append(np.full((size, size, 3), 80, np.uint8))
        made.decisions.append(now if scored else {})
    return made


def close(picture: np.ndarray, colour) -> np.ndarray:
    return np.abs(picture.astype(int) - np.array(colour)).max(-1) < 25


def test_frames_get_a_trace_and_small_ones_are_enlarged():
    assert overlay(recording()).shape == (9, 240 + TRACE, 240, 3)
    assert overlay(recording(size=100)).shape == (9, 300 + TRACE, 300, 3)
    assert overlay(recording(scored=False)).shape == (9, 240 + TRACE, 240, 3)


def test_the_chosen_candidate_is_blue_and_goes_where_it_goes():
    inset = overlay(recording())[0, 6:86, 240 - 86 : 240 - 6]
    blue = np.argwhere(close(inset, BLUE))
    assert len(blue) > 20
    assert blue[:, 1].mean() > 45 and abs(blue[:, 0].mean() - 40) < 3  # to the right
    grey = inset.max(-1) < 225
    grey[[0, 1, -1, -2]] = grey[:, [0, 1, -1, -2]] = False  # the frame
    assert grey[15:35, 38:43].any() and not grey[45:, 38:43].any()  # up, and not down
    assert grey[38:43, 10:35].any()  # left


def test_the_trace_grows_with_the_decisions():
    film = overlay(recording())
    blue = [close(frame[240:], BLUE).sum() for frame in film]
    assert blue[0] == blue[3] < blue[4] == blue[7] < blue[8]
    assert (film[0, 240:] == film[3, 240:]).all()


def test_an_unscored_episode_has_no_blue():
    assert not close(overlay(recording(scored=False))[0], BLUE).any()


def test_infinite_scores_are_left_out():
    made = recording()
    for now in made.decisions:
        now["scores"] = np.array([-np.inf, 1.0, np.nan])
    overlay(made)


def test_side_by_side_holds_the_last_frame():
    short, long = (np.full((n, 40, 60, 3), n, np.uint8) for n in (3, 5))
    both = side_by_side([short, long], ["a", "b"])
    assert both.shape == (5, 40 + BAR, 120 + GAP, 3)
    assert (both[:, BAR:, :60] == 3).all() and (both[:, BAR:, 60 + GAP :] == 5).all()
    assert (both[0, :BAR, :60] < 100).any()  # the caption's ink


def test_an_mp4_can_be_read_back(tmp_path):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    film = np.zeros((6, 65, 64, 3), np.uint8)  # an odd height, which the codec refuses
    film[3:] = 200
    path = write_video(tmp_path / "videos" / "film.mp4", film, fps=10)
    back = np.stack(imageio.mimread(path))
    assert back.shape == (6, 64, 64, 3)
    assert back[0].mean() < 20 and back[-1].mean() > 180
    assert [file.name for file in path.parent.iterdir()] == ["film.mp4"]


def test_without_ffmpeg_it_is_a_gif_and_says_so(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def no_imageio(name, *args, **rest):
        if name.startswith("imageio"):
            raise ImportError("no imageio")
        return real(name, *args, **rest)

    monkeypatch.setattr(builtins, "__import__", no_imageio)
    film = np.zeros((3, 20, 30, 3), np.uint8)
    film[1], film[2] = 120, 250
    path = write_video(tmp_path / "film.mp4", film)
    assert path.name == "film.gif"
    gif = Image.open(path)
    assert gif.size == (30, 20) and gif.n_frames == 3
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and "genpol[sim]" in note


def test_what_is_not_a_film_is_refused(tmp_path):
    with pytest.raises(InputError, match="uint8"):
        write_video(tmp_path / "film.mp4", np.zeros((2, 4, 4, 3)))
    with pytest.raises(InputError, match="of one size"):
        write_video(tmp_path / "film.mp4", [np.zeros((4, 4, 3)), np.zeros((5, 4, 3))])
    with pytest.raises(InputError, match="frames"):
        write_video(tmp_path / "film.mp4", [])
