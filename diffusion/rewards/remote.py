"""`http://host:port`: a reward computed by a server, in batches.

    POST {"images": [base64 PNG, ...], "prompts": [text, ...]}  ->  {"rewards": [number, ...]}

Nothing is ever unpickled. Images are sent as 8-bit PNG, to the address given and to no other. When
a failing server is tried again: see `server.py`. `scripts/reward_server.py` is a server to copy.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from pydantic_core import from_json
from torch import Tensor

from diffusion.errors import RewardError, shown
from diffusion.rewards.exchange import Answer
from diffusion.rewards.pixels import to_uint8
from diffusion.rewards.server import ASKING, Number, Server, read_address

_FLOAT32 = torch.finfo(torch.float32).max


class RemoteReward(Server):
    """A RewardFn that asks a server.

    `batch` images a request; `timeout` seconds for a whole exchange; `retries` further tries after
    a first that failed; `backoff` seconds before the first of them, doubling up to 30; `key` a
    password, sent as a bearer token.
    """

    def __init__(
        self,
        url: str,
        *,
        batch: int = 16,
        timeout: float = 30.0,
        retries: int = 6,
        backoff: float = 0.5,
        key: str | None = None,
    ) -> None:
        self.batch = batch
        super().__init__(
            url,
            name="The reward server",
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            key=key,
            smaller=", or send less with ?batch=N",
        )

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(B, 3, H, W) float in [0, 1] and B prompts -> (B,) float32. Raises RewardError."""
        rewards: list[float] = []
        for start in range(0, len(prompts), self.batch):
            stop = start + self.batch
            rewards += self._batch(images[start:stop], prompts[start:stop])
        return torch.tensor(rewards, dtype=torch.float32)

    def _batch(self, images: Tensor, prompts: list[str]) -> list[float]:
        body = {"images": [to_png(array) for array in to_uint8(images)], "prompts": prompts}
        count = len(prompts)
        asked = f"the batch of {count} that begins with prompt {json.dumps(shown(prompts[0]))}"
        # A number takes some 25 bytes; the rest is for what a server may say besides.
        most = 2**20 + 1024 * count
        return self.ask(body, most, asked, lambda a: self._rewards(a, prompts, asked))

    def _rewards(self, answer: Answer, prompts: Sequence[str], asked: str) -> list[float]:
        expected = f'expected {{"rewards": [{len(prompts)} numbers]}}'
        came = repr(shown(answer.body.decode(errors="replace")))
        try:
            reply = from_json(answer.body)  # bounded in depth
        except ValueError as error:
            raise self.perhaps_passing(f"answered {asked} with {came}", f"{expected}.") from error
        rewards = reply.get("rewards") if isinstance(reply, dict) else None
        if not isinstance(rewards, list):
            raise RewardError(f"{self.name} answered {asked} with {came}: {expected}.")
        if len(rewards) != len(prompts):
            raise RewardError(
                f"{self.name} returned {len(rewards)} rewards for {asked}: {expected}."
            )
        return [self._number(value, prompt) for value, prompt in zip(rewards, prompts, strict=True)]

    def _number(self, value: Any, prompt: str) -> float:
        # null is how strict JSON writes NaN; the caller names the prompt it belongs to.
        if value is None:
            return math.nan
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if abs(value) <= _FLOAT32 or (isinstance(value, float) and not math.isfinite(value)):
                return float(value)
            problem = "does not fit into float32 (at most 3.4e38)"
        else:
            problem = "is no number: expected one of at most 3.4e38, or null"
        came = shown(json.dumps(value)) if not isinstance(value, int) else shown(f"{value:#x}")
        raise RewardError(
            f"{self.name} returned {came} for prompt {json.dumps(shown(prompt))}, which {problem}."
        )


def load_remote(url: str) -> RemoteReward:
    """From "http://host:port/path?batch=16&timeout=30&retries=6"; asks whether a server listens.

    `key_env=NAME` or `key_file=PATH` says where its key is. Other query parameters are passed on.
    Raises InputError on an address that cannot be one, RewardError where nothing answers.
    """
    plain, options = read_address(url, {"batch": Number(int, 1, 10_000), **ASKING})
    remote = RemoteReward(plain, **options)
    remote.check()
    return remote


def to_png(pixels: Any) -> str:
    """(H, W, 3) uint8 -> a PNG file as base64 text."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
