"""`vlm@http://host:port/v1?model=NAME`: a vision-language model judges each image.

`chat.py` says how it is asked and what counts as an answer. The reward is the number of the reply,
from `low` to `high`.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from diffusion.errors import InputError, shown
from diffusion.rewards.chat import Chat, open_chat
from diffusion.rewards.pixels import to_uint8
from diffusion.rewards.server import Number

INSTRUCTION = """\
This picture was made from the caption below. How well does it show what the caption asks for?
Judge objects, their number, attributes, places and text first, and the quality of the picture next.

Caption: {prompt}

Answer with one number from {low} (not at all) to {high} (entirely), and with nothing else."""


class Judge:
    """A RewardFn that asks a vision-language model about each image.

    Args:
        chat: with the model.
        instruction: the question; {prompt}, {low} and {high} in it are filled in.
        concurrency: requests at a time.
    """

    def __init__(self, chat: Chat, *, instruction: str = INSTRUCTION, concurrency: int = 4) -> None:
        self.chat, self.instruction, self.concurrency = chat, instruction, concurrency

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(B, 3, H, W) float in [0, 1] and B prompts -> (B,) float32. Raises RewardError."""
        self.chat.stop.clear()
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        try:
            asked = [
                pool.submit(self._judge, pixels, prompt)
                for pixels, prompt in zip(to_uint8(images), prompts, strict=True)
            ]
            return torch.tensor([one.result() for one in asked], dtype=torch.float32)
        finally:  # after an error or an interrupt nothing more is asked, nor waited for
            self.chat.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def question(self, prompt: str) -> str:
        """The instruction with the prompt and the range in it."""
        low, high = self.chat.low, self.chat.high
        fill = {"{prompt}": prompt, "{low}": f"{low:g}", "{high}": f"{high:g}"}
        return re.sub("{prompt}|{low}|{high}", lambda m: fill[m.group()], self.instruction)

    def _judge(self, pixels: Any, prompt: str) -> float:
        asked = f"about prompt {json.dumps(shown(prompt), ensure_ascii=False)}"
        return self.chat.number(self.question(prompt), [pixels], asked)


def load_vlm(location: str | None) -> Judge:
    """From "http://host:port/v1?model=NAME&instruction=FILE&low=0&high=10&concurrency=4".

    `open_chat` lists further options. Raises InputError where the address or the file is wrong,
    RewardError where nothing answers.
    """
    if location is None or not re.match("https?://", location):
        raise InputError(
            'Reward "vlm" needs the address of a server: vlm@http://host:port/v1?model=NAME.'
        )
    numbers = {"concurrency": Number(int, 1, 256)}
    chat, options = open_chat(location, name="The judge", numbers=numbers, texts=("instruction",))
    return Judge(chat, **options)
