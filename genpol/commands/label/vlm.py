"""`vlm@http://host:port/v1?model=NAME`: a vision-language model says whether an episode succeeded.

It sees pictures of the episode, evenly spaced in time, the last one included, and the instruction.
It answers with a number: `success` or more is a success, `failure` or less is a failure, and what
lies between is left for a person. `diffusion/rewards/chat.py` says how it is asked.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion.errors import RewardError
from diffusion.rewards.chat import Chat, open_chat
from diffusion.rewards.server import Number
from offline.data.episodes import Episode
from offline.errors import InputError, shown

INSTRUCTION = """\
These pictures show one attempt of a robot, in the order of time. The last one shows how it ended.

Task: {task}

Had the robot done the task by the end? Judge by the last pictures first.
Answer with one number from {low} (certainly not) to {high} (certainly), and with nothing else."""
UNKNOWN_TASK = "not stated; judge by what the robot seems to try"
LAYOUTS = ("separate", "grid")
FRAMES = 8
GAP = 4  # pixels between the pictures of a grid


class EpisodeJudge:
    """(episode, its index) -> whether it succeeded, None where the answer is in doubt.

    Args:
        chat: with the model.
        instruction: the question; {task}, {low} and {high} in it are filled in.
        frames: pictures that are shown.
        layout: "separate" pictures, or one "grid" for servers that take a single one.
        success, failure: the least answer that is a success, the greatest that is a failure.
        concurrency: episodes that are asked about at a time.
        height: pixels; higher pictures are made smaller.
        camera: the observation that is shown. None: all that are pictures, side by side.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        instruction: str = INSTRUCTION,
        frames: int = FRAMES,
        layout: str = "separate",
        success: float | None = None,
        failure: float | None = None,
        concurrency: int = 4,
        height: int = 480,
        camera: str | None = None,
    ) -> None:
        self.chat, self.instruction, self.frames, self.layout = chat, instruction, frames, layout
        span = chat.high - chat.low
        self.success = chat.low + 0.7 * span if success is None else success
        self.failure = chat.low + 0.3 * span if failure is None else failure
        self.concurrency, self.height, self.camera = concurrency, height, camera

    def __call__(self, episode: Episode, index: int) -> bool | None:
        """Ask about one episode.

        Raises:
            InputError: it has no pictures, or the server refuses.
        """
        pictures = self.pictures(episode, index)
        if self.layout == "grid":
            pictures = [grid(pictures)]
        try:
            value = self.chat.number(self.question(episode), pictures, f"about episode {index}")
        except RewardError as error:
            hint = " If the server takes one picture at a time, add layout=grid."
            refused = "refused" in str(error) and len(pictures) > 1
            raise InputError(f"{error}{hint if refused else ''}") from error
        return True if value >= self.success else False if value <= self.failure else None

    def close(self) -> None:
        """Ask nothing more."""
        self.chat.stop.set()

    def question(self, episode: Episode) -> str:
        """The instruction with the task and the range in it."""
        fill = {
            "{task}": episode.language or UNKNOWN_TASK,
            "{low}": f"{self.chat.low:g}",
            "{high}": f"{self.chat.high:g}",
        }
        return re.sub("{task}|{low}|{high}", lambda match: fill[match.group()], self.instruction)

    def pictures(self, episode: Episode, index: int) -> list[NDArray[np.uint8]]:
        """(h, w, 3) uint8, at most `frames`: evenly spaced, first and last observation included."""
        keys = sorted(key for key, values in episode.obs.items() if values.ndim == 4)
        if self.camera is not None:
            if self.camera not in keys:
                raise InputError(
                    f'vlm@: the dataset has no pictures "{shown(self.camera)}", it has '
                    f"{', '.join(keys) or 'none'}"
                )
            keys = [self.camera]
        if not keys:
            raise InputError(
                f"episode {index} has no pictures that a vision-language model could look at: pass "
                "a module:function to --success, which sees the numbers"
            )
        at = np.unique(np.linspace(0, len(episode), self.frames).round().astype(int))
        return [_beside([episode.obs[key][step] for key in keys], self.height) for step in at]


def _beside(pictures: list[np.ndarray], height: int) -> NDArray[np.uint8]:
    """Pictures side by side, of one height."""
    tall = min(height, max(picture.shape[0] for picture in pictures))
    each = [
        picture
        if picture.shape[0] == tall
        else np.asarray(
            Image.fromarray(picture).resize(
                (max(1, round(picture.shape[1] * tall / picture.shape[0])), tall)
            )
        )
        for picture in pictures
    ]
    return np.concatenate(each, 1)


def grid(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """One picture of all, row by row, about as wide as it is high."""
    height, width = pictures[0].shape[:2]
    columns = max(1, round((len(pictures) * height / width) ** 0.5))
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = (height + GAP) * (number // columns), (width + GAP) * (number % columns)
        canvas[top : top + height, left : left + width] = picture
    return canvas


def load_judge(location: str, height: int) -> EpisodeJudge:
    """From "http://host:port/v1?model=NAME&frames=8&layout=grid&success=7&failure=3".

    Further: camera, instruction=FILE, concurrency, low, high, max_tokens, timeout, retries,
    backoff, key_env, key_file.

    Raises:
        InputError: the address or an option is wrong, or nothing answers there.
    """
    if not re.match("https?://", location):
        raise InputError(
            "--success vlm@ needs the address of a server: vlm@http://HOST:PORT/v1?model=NAME"
        )
    numbers = {
        "frames": Number(int, 1, 64),
        "success": Number(float, -1e6, 1e6),
        "failure": Number(float, -1e6, 1e6),
        "concurrency": Number(int, 1, 256),
    }
    chat, options = open_chat(
        location,
        name="The judge",
        numbers=numbers,
        texts=("instruction", "layout", "camera"),
        what="--success",
    )
    if options.get("layout", "separate") not in LAYOUTS:
        raise InputError(
            f'--success: layout is {" or ".join(LAYOUTS)}, received "{shown(options["layout"])}"'
        )
    judge = EpisodeJudge(chat, height=height, **options)
    if judge.failure >= judge.success:
        raise InputError(
            f"--success: failure={judge.failure:g} has to be less than success={judge.success:g}"
        )
    return judge
