"""What a recording stores of a robot's message: which arrays, under which LeRobot feature.

"observation/state", "observation.state" and "state" become "observation.state"; the keys of maps in
a map are joined with ".". RGB images of bytes, (height, width, 3) or (3, height, width), become
videos; other numbers become one float32 vector.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from offline.errors import InputError
from robots.datasets.lerobot import OBSERVATION
from robots.serving.observations import flatten, numbers

MOST = 4096  # numbers of a vector; what is larger and no picture is not recorded
LONGEST = 4000  # characters of a prompt
SMALLEST, LARGEST = 8, 8192  # pixels of a picture's side
PREFIX = re.compile(r"^observations?[./]")
Arrays = dict[str, np.ndarray]

OWN = {  # LeRobot's own columns, and what a recording says of each step
    "next.reward": "float32",
    "next.done": "bool",
    "next.success": "bool",
    "intervention": "bool",
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def feature_name(key: str) -> str:
    """The LeRobot feature that a key of a message is stored as."""
    return OBSERVATION + PREFIX.sub("", key).replace("/", ".")


def split_message(
    message: Mapping[str, Any], rename: Mapping[str, str]
) -> tuple[Arrays, Arrays, str, list[str]]:
    """A message's vectors and pictures by feature, its prompt, and the keys that are not stored.

    Args:
        message: an observation; nested maps are flattened.
        rename: the message's keys -> those of the data that a value was trained on.
    """
    vectors, pictures = Arrays(), Arrays()
    prompt, left = "", list[str]()
    for key, value in flatten(message).items():
        name = feature_name(rename.get(key, key))
        if name == OBSERVATION + "prompt" and (text := _text(value)) is not None:
            prompt = text
            continue
        array = numbers(value)
        if array is None or not array.size or name in vectors or name in pictures:
            left.append(key)
        elif is_picture(array):
            pictures[name] = array
        elif array.size <= MOST:
            vectors[name] = array
        else:
            left.append(key)
    return vectors, pictures, prompt, left


def _text(value: Any) -> str | None:
    if isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.size == 1:
        value = value.item()
    return str(value)[:LONGEST] if isinstance(value, str | np.str_) else None


def is_picture(array: np.ndarray) -> bool:
    """Whether it is an RGB image of bytes."""
    if array.ndim != 3 or array.dtype != np.uint8 or 3 not in (array.shape[0], array.shape[2]):
        return False
    return all(SMALLEST <= side <= LARGEST for side in as_hwc(array).shape[:2])


def as_hwc(picture: np.ndarray) -> np.ndarray:
    """(height, width, 3), from that or from (3, height, width)."""
    return picture if picture.shape[2] == 3 else np.moveaxis(picture, 0, 2)


def as_vector(values: np.ndarray) -> np.ndarray:
    """One float32 vector; what is not finite becomes 0, so that the episode can be read."""
    with np.errstate(over="ignore"):
        return np.nan_to_num(np.asarray(values, np.float32).reshape(-1), posinf=0.0, neginf=0.0)


def describe(vectors: Arrays, pictures: Mapping[str, tuple[int, ...]], names: list[str], dim: int,
             fps: float) -> dict[str, Any]:  # fmt: skip
    """The features of meta/info.json.

    Args:
        vectors: one observation's.
        pictures: the shape (height, width, 3) of each.
        names: of the action's dimensions, or none.
        dim: A.
        fps: of the videos.
    """
    features: dict[str, Any] = {}
    for key, values in sorted(vectors.items()):
        features[key] = {"dtype": "float32", "shape": [as_vector(values).size], "names": None}
    for key, shape in sorted(pictures.items()):
        features[key] = {
            "dtype": "video",
            "shape": list(shape),
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": shape[0],
                "video.width": shape[1],
                "video.channels": 3,
                "video.codec": "h264",
                "video.pix_fmt": pixels(shape),
                "video.is_depth_map": False,
                "video.fps": fps,
                "has_audio": False,
            },
        }
    features["action"] = {"dtype": "float32", "shape": [dim], "names": names or None}
    for key, dtype in OWN.items():
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def pixels(shape: tuple[int, ...]) -> str:
    """ffmpeg's pixel format: colours at half the resolution need even sides."""
    return "yuv420p" if shape[0] % 2 == 0 and shape[1] % 2 == 0 else "yuv444p"


def require_same(found: Mapping[str, Any], there: Mapping[str, Any], name: str) -> None:
    """Check that an episode has the features of its recording.

    Raises:
        InputError: names the first that is missing, new or of another shape.
    """
    for key in sorted({*found, *there}):
        if key not in found or key not in there:
            which = "lacks" if key not in found else "has"
            raise InputError(f'{name} {which} "{key}", unlike the episodes before it')
        here, before = (tuple(side[key]["shape"]) for side in (found, there))
        if here != before or found[key]["dtype"] != there[key]["dtype"]:
            raise InputError(f'{name} has "{key}" of shape {here}, the episodes before it {before}')
