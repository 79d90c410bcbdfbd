"""`http://host:port`: a reward computed by a server, in batches.

    POST {"images": [base64 PNG, ...], "prompts": [text, ...]}  ->  {"rewards": [number, ...]}

Nothing is ever unpickled. Images are sent as 8-bit PNG, to the address given and to no other. The
server is not trusted: see `exchange.py` for the bounds.

What may pass is tried again, with waits of 0.5, 1, 2, ... seconds: a connection that fails, 5xx,
408 and 429, and from a server that has answered well before also time-outs and answers that are no
JSON. Anything else is an error at once. `scripts/reward_server.py` is a server to copy.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import torch
from PIL import Image
from pydantic_core import from_json
from torch import Tensor

from diffusion.errors import InputError, RewardError, shown
from diffusion.rewards.exchange import (
    Answer,
    ExchangeError,
    Late,
    Unreachable,
    Unreadable,
    exchange,
)
from diffusion.rewards.pixels import to_uint8

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LONGEST_WAIT = 30.0  # seconds between two tries
_CHECK_SECONDS, _CHECK_RETRIES = 5.0, 3  # before a run; a server that comes back is for later
_PASSING = (408, 429)  # besides 5xx
_FLOAT32 = torch.finfo(torch.float32).max


class RemoteReward:
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
        self.url = url
        self.batch = batch
        self.timeout = timeout
        self.retries = retries
        self.backoff = backoff
        self._key = key
        parts = urlsplit(url)
        # A cluster's proxy cannot reach this machine's servers.
        self._trust_env = parts.hostname not in _LOOPBACK
        address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self._name = f"The reward server {shown(address)}"
        self._answered = False  # well, at least once

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(B, 3, H, W) float in [0, 1] and B prompts -> (B,) float32. Raises RewardError."""
        rewards: list[float] = []
        for start in range(0, len(prompts), self.batch):
            stop = start + self.batch
            rewards += self._batch(images[start:stop], prompts[start:stop])
        return torch.tensor(rewards, dtype=torch.float32)

    def check(self) -> None:
        """Raises RewardError where no server listens, before any image has been made."""

        def listens() -> None:
            try:
                self._exchange("OPTIONS", min(self.timeout, _CHECK_SECONDS), 1)
            except (Late, Unreadable):
                pass  # it may be busy, and is asked nothing yet

        self._insist(listens, min(self.retries, _CHECK_RETRIES))

    def _batch(self, images: Tensor, prompts: list[str]) -> list[float]:
        body = {"images": [to_png(array) for array in to_uint8(images)], "prompts": prompts}
        count = len(prompts)
        asked = f"the batch of {count} that begins with prompt {json.dumps(shown(prompts[0]))}"
        # A number takes some 25 bytes; the rest is for what a server may say besides.
        return self._insist(lambda: self._ask(body, prompts, 2**20 + 1024 * count, asked))

    def _ask(self, body: Any, prompts: list[str], most: int, asked: str) -> list[float]:
        """One try. Raises _Passing where another may help, else RewardError."""
        try:
            answer = self._exchange("POST", self.timeout, most, body)
        except Late as error:
            raise self._perhaps_passing(
                f"did not answer {asked} within {self.timeout:g} s",
                "Allow more with ?timeout=SECONDS, or send less with ?batch=N.",
            ) from error
        except Unreadable as error:
            raise self._perhaps_passing(
                f"cannot be understood: {error}",
                "Is the address right, and does the server speak this protocol?",
            ) from error
        said = f"HTTP {answer.status} {shown(answer.body.decode(errors='replace'))}".strip()
        if answer.status >= 500 or answer.status in _PASSING:
            raise _Passing(said)
        if 300 <= answer.status < 400:
            raise RewardError(
                f"{self._name} sends on to {json.dumps(shown(answer.location))} "
                f"(HTTP {answer.status}). Prompts and images are not sent to another address: "
                f"name that one, if it is the right one."
            )
        if not 200 <= answer.status < 300:
            hint = "Is the address right, and does the server speak this protocol?"
            if answer.status == 401:
                hint = "Name its key with ?key_env=VARIABLE or ?key_file=FILE."
            raise RewardError(f"{self._name} refused {asked}: {said}. {hint}")
        rewards = self._rewards(answer, prompts, asked)
        self._answered = True
        return rewards

    def _exchange(self, method: str, seconds: float, most: int, body: Any = None) -> Answer:
        try:
            return exchange(
                method,
                self.url,
                seconds=seconds,
                most=most,
                body=body,
                key=self._key,
                trust_env=self._trust_env,
            )
        except Unreachable as error:
            raise _Passing(str(error)) from error
        except (Late, Unreadable):
            raise
        except ExchangeError as error:
            raise RewardError(f"{self._name} cannot be asked: {error}.") from error

    def _perhaps_passing(self, problem: str, hint: str) -> Exception:
        """A server that has never answered well is more likely the wrong one than a sick one."""
        return (
            _Passing(problem) if self._answered else RewardError(f"{self._name} {problem}. {hint}")
        )

    def _insist(self, ask: Callable[[], Any], retries: int | None = None) -> Any:
        """What `ask` returns, tried again while what it raises may pass."""
        tries = 1 + (self.retries if retries is None else retries)
        for attempt in range(tries):
            try:
                return ask()
            except _Passing as error:
                problem = str(error)
            if attempt + 1 < tries:
                if attempt == 0 and self._answered:
                    _warn(f"{self._name} failed: {problem}. Trying {tries - 1} more times.")
                time.sleep(min(_LONGEST_WAIT, self.backoff * 2.0 ** min(attempt, 60)))
        raise RewardError(
            f"{self._name} failed {tries} {'times' if tries > 1 else 'time'}: {problem}. "
            f"Start it, check host and port, or allow more with ?retries=N."
        )

    def _rewards(self, answer: Answer, prompts: Sequence[str], asked: str) -> list[float]:
        expected = f'expected {{"rewards": [{len(prompts)} numbers]}}'
        came = repr(shown(answer.body.decode(errors="replace")))
        try:
            reply = from_json(answer.body)  # bounded in depth
        except ValueError as error:
            raise self._perhaps_passing(f"answered {asked} with {came}", f"{expected}.") from error
        rewards = reply.get("rewards") if isinstance(reply, dict) else None
        if not isinstance(rewards, list):
            raise RewardError(f"{self._name} answered {asked} with {came}: {expected}.")
        if len(rewards) != len(prompts):
            raise RewardError(
                f"{self._name} returned {len(rewards)} rewards for {asked}: {expected}."
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
            f"{self._name} returned {came} for prompt {json.dumps(shown(prompt))}, which {problem}."
        )


class _Passing(Exception):
    """Another try may help."""


def load_remote(url: str) -> RemoteReward:
    """From "http://host:port/path?batch=16&timeout=30&retries=6"; asks whether a server listens.

    `key_env=NAME` or `key_file=PATH` says where its key is. Other query parameters are passed on.
    Raises InputError on an address that cannot be one, RewardError where nothing answers.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f'Reward "{shown(url)}" is no address: {error}.') from error
    if not host:
        raise InputError(f'Reward "{shown(url)}" names no host: expected http://host:port/path.')
    options: dict[str, Any] = {}
    others: list[tuple[str, str]] = []
    known: dict[str, tuple[Callable[[str], float], float, float]] = {
        "batch": (int, 1, 10_000),
        "timeout": (float, 1e-3, 86_400),
        "retries": (int, 0, 10_000),
        "backoff": (float, 0, _LONGEST_WAIT),
    }
    keys = {"key_env": _key_of_variable, "key_file": _key_of_file}
    for key, text in parse_qsl(parts.query, keep_blank_values=True):
        if key in keys:
            options["key"] = keys[key](text)
            continue
        if key not in known:
            others.append((key, text))
            continue
        convert, least, most = known[key]
        try:
            options[key] = convert(text)
            valid = least <= options[key] <= most
        except ValueError:
            valid = False
        if not valid:
            raise InputError(
                f'Reward "{shown(url)}": expected {key} of at least {least} and at most {most:g}, '
                f'not "{shown(text)}".'
            )
    plain = urlunsplit(parts._replace(query=urlencode(others)))
    remote = RemoteReward(plain, **options)
    remote.check()
    return remote


def to_png(pixels: Any) -> str:
    """(H, W, 3) uint8 -> a PNG file as base64 text."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _key_of_variable(name: str) -> str:
    """The key of a server in an environment variable."""
    if not os.environ.get(name):
        raise InputError(f'key_env: there is no environment variable "{shown(name)}".')
    return _key(os.environ[name], f"The variable {shown(name)}")


def _key_of_file(path: str) -> str:
    """The key of a server in a file."""
    try:
        with open(os.path.expanduser(path), encoding="ascii") as file:
            text = file.read(10_000)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no text"
        raise InputError(f'key_file: "{shown(path)}" cannot be read ({why}).') from error
    return _key(text, f"The file {shown(path)}")


def _key(text: str, where: str) -> str:
    key = text.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{where} holds no key: expected one word of printable ASCII.")
    return key


def _warn(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"warning: {text}", file=sys.stderr)  # above a bar, if there is one
