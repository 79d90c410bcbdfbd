"""`open_dataset`: opens a dataset of any format, recognised from its files.

A format of one's own is a function of a path, named as "module:function@path". It returns
`Episodes`, or a list of `Episode`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offline.data.episodes import Episode, Episodes
from offline.errors import InputError
from robots.datasets.hdf5 import open_hdf5, require_file
from robots.datasets.labels import labelled
from robots.datasets.memory import EpisodeList
from robots.datasets.own import OwnEpisodes, check_description
from robots.datasets.resized import Resized
from robots.importing import import_object, one_line

KNOWN = (
    "robomimic HDF5 (data/demo_0), D4RL HDF5 (observations, actions), a Minari dataset "
    "(minari:NAME, or a folder with data/main_data.hdf5), a LeRobot v3 folder (meta/info.json)"
)
OWN = re.compile(r"([A-Za-z_][\w.]*:[A-Za-z_][\w.]*)@(.*)", re.DOTALL)


def open_dataset(
    path: str | Path,
    *,
    success: str | None = None,
    images: Sequence[str] = (),
    image_size: int | None = None,
) -> Episodes:
    """Open a dataset of any known format, or by a reader of your own.

    Args:
        path: a file; a folder; "minari:NAME" for one in Minari's local storage; or
            "module:function@path", which calls a reader of your own with the path.
        success: who says which episodes succeeded: "all", "last-reward", a FILE.csv of labels, or
            "module:function" of each episode. None takes labels.csv of the dataset's folder, if
            there is one, else what the dataset says. See `robots.datasets.labels`.
        images: videos to decode, by the names of their observations; other pictures are read
            anyway.
        image_size: height and width that all pictures are resized to; default their own.

    Raises:
        InputError: missing, cut off, or of no known format; or the reader or the labels fail.
    """
    return labelled(open_as_stored(path, images=images, image_size=image_size), success)


def open_as_stored(
    path: str | Path,
    *,
    images: bool | Sequence[str] = (),
    image_size: int | None = None,
) -> Episodes:
    """As `open_dataset`, without any labels; `images=True` decodes all videos."""
    if image_size is not None and image_size < 1:
        raise InputError(f"a picture has at least 1 pixel, received image_size={image_size}")
    found = _open(path, images, image_size)
    if image_size is not None and any(
        len(shape) == 3 and tuple(shape[:2]) != (image_size, image_size)
        for shape in found.obs_shapes.values()
    ):
        return Resized(found, image_size)
    return found


def _open(path: str | Path, images: bool | Sequence[str], image_size: int | None) -> Episodes:
    text = str(path)
    if text.startswith("minari:"):
        from robots.datasets.minari import MinariEpisodes

        return MinariEpisodes(text)
    if (own := OWN.fullmatch(text)) and not Path(text).exists():
        return _read_by(*own.groups())
    path = Path(os.path.expanduser(path))
    require_file(path)
    return _open_folder(path, images, image_size) if path.is_dir() else _open_file(path)


def as_episodes(found: Any, name: str) -> Episodes:
    """A dataset as it is; a list of `Episode` becomes one.

    Raises:
        InputError: it is neither.
    """
    if all(hasattr(found, part) for part in ("lengths", "obs_shapes", "spec", "env")):
        check_description(found, name)
        return found
    if isinstance(found, (list, tuple)) and all(isinstance(part, Episode) for part in found):
        return EpisodeList(found)
    raise InputError(
        f"{name} is a {type(found).__name__}, expected a list of offline.Episode, or a "
        "dataset such as robots.EpisodeList"
    )


def _read_by(reader: str, path: str) -> Episodes:
    """What the user's function makes of a path."""
    function = import_object(reader, what="a dataset reader")
    try:
        found = function(path)
    except InputError:
        raise
    except Exception as error:  # whatever the user's own function raises
        raise InputError(f'{reader} cannot read "{path}": {one_line(error)}') from error
    return OwnEpisodes(as_episodes(found, f"what {reader} returned"), reader)


def _open_folder(path: Path, images: bool | Sequence[str], image_size: int | None) -> Episodes:
    if (path / "genpol" / "recording.json").is_file():
        from robots.datasets.recorded import RecordedEpisodes

        return RecordedEpisodes(path, videos=images, image_size=image_size)
    if (path / "meta" / "info.json").is_file():
        from robots.datasets.lerobot import LeRobotEpisodes

        return LeRobotEpisodes(path, videos=images, image_size=image_size)
    for folder in (path / "data", path):
        if (folder / "main_data.hdf5").is_file() or (folder / "metadata.json").is_file():
            from robots.datasets.minari import MinariEpisodes

            return MinariEpisodes(folder)
    files = sorted(p for kind in ("*.hdf5", "*.h5") for p in path.glob(kind))
    hint = f' Did you mean "{files[0]}"?' if files else ""
    raise InputError(f'"{path}" holds no dataset of a known format: {KNOWN}.{hint}')


def _open_file(path: Path) -> Episodes:
    if path.name == "main_data.hdf5":
        from robots.datasets.minari import MinariEpisodes

        return MinariEpisodes(path.parent)
    with open_hdf5(path) as file:
        keys = sorted(file)
    if "data" in keys:
        from robots.datasets.robomimic_hdf5 import RobomimicHdf5

        return RobomimicHdf5(path)
    if "observations" in keys and "actions" in keys:
        from robots.datasets.d4rl import D4rlHdf5

        return D4rlHdf5(path)
    raise InputError(f'"{path}" holds {", ".join(keys[:6]) or "nothing"}, expected one of: {KNOWN}')
