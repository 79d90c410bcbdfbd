"""A model that looks at pictures, asked over the chat interface that OpenAI's server has.

vLLM, SGLang, llama.cpp, Ollama and LM Studio serve it on this machine. One request for a question:

    POST /chat/completions {"model", "messages": [text and pictures], "max_tokens", "temperature"}

The answer is a number from `low` to `high`. A reply is that number and nothing else (8, 7.5, 8/10,
"score: 8"), or JSON: a number, or an object with "score" or "rating". Any other is asked for again,
at a higher temperature, and is then an error that repeats it. A number is never picked out of a
sentence.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from diffusion.errors import InputError, RewardError, listed, shown
from diffusion.rewards.exchange import Answer
from diffusion.rewards.remote import to_png
from diffusion.rewards.server import (
    ASKING,
    CHECK_RETRIES,
    CHECK_SECONDS,
    Number,
    Server,
    read_address,
)

REPLIES = 3  # to a question whose answers are no numbers
_TEMPERATURES = (0.0, 0.5, 1.0)
_MOST = 2**20  # bytes of an answer
_LONGEST = 100_000  # characters of an instruction
_SCORES = ("score", "rating")
_LONGEST_NUMBER = 100  # characters of a reply that is a number and no JSON
_PLAIN = re.compile(
    r"(?:(?:score|rating)\s*[:=]\s*)?([+-]?\d+(?:\.\d+)?)(?:\s*/\s*(\d+(?:\.\d+)?))?\s*\.?",
    re.IGNORECASE | re.ASCII,
)
_FENCES = ("```json", "```")


class Chat:
    """Asks a model for a number about pictures; any number of threads may.

    Args:
        server: of the interface; its address ends before /chat/completions.
        model: its name there.
        low, high: the range of a valid number.
        max_tokens: of a reply; more for models that think aloud.
        stop: once it is set, nothing more is asked.
    """

    def __init__(
        self,
        server: Server,
        model: str,
        *,
        low: float = 0.0,
        high: float = 10.0,
        max_tokens: int = 512,
        stop: threading.Event | None = None,
    ) -> None:
        self.server, self.model = server, model
        self.low, self.high, self.max_tokens = low, high, max_tokens
        self.stop = stop or threading.Event()

    def number(self, question: str, pictures: Sequence[Any], asked: str) -> float:
        """The model's answer.

        Args:
            question: text in which {low} and {high} are filled in already.
            pictures: each (H, W, 3) uint8.
            asked: what for, such as "about episode 3", in errors.

        Raises:
            RewardError: the server refuses, or no reply is a valid number.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        for pixels in pictures:
            url = f"data:image/png;base64,{to_png(pixels)}"
            content.append({"type": "image_url", "image_url": {"url": url}})
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
        }
        problem = ""
        for temperature in _TEMPERATURES[:REPLIES]:
            if self.stop.is_set():
                break
            whole = body | {"temperature": temperature}
            reply, cut = self.server.ask(
                whole, _MOST, asked, lambda answer: self._reply(answer, asked), "/chat/completions"
            )
            value = number_of(reply, self.high)
            if value is not None and self.low <= value <= self.high:
                return value
            problem = f'"{shown(reply, 160)}"'
            if cut:
                problem += f", cut off after {self.max_tokens} tokens (allow more: max_tokens=N)"
        raise RewardError(
            f"{self.server.name} replied {problem} {asked}, {REPLIES} times no valid number: "
            f"expected one from {self.low:g} to {self.high:g} and nothing else. Say so in the "
            f"instruction (instruction=FILE), or set the range with low=N and high=N."
        )

    def _reply(self, answer: Answer, asked: str) -> tuple[str, bool]:
        """The text of an answer, and whether it was cut off."""
        try:
            choice = from_json(answer.body)["choices"][0]
            content = choice["message"]["content"]
            if isinstance(content, list):
                content = "".join(part["text"] for part in content if part["type"] == "text")
            if content is None:
                content = ""
            if not isinstance(content, str):
                raise TypeError
        except (ValueError, LookupError, TypeError) as error:
            came = repr(shown(answer.body.decode(errors="replace")))
            raise self.server.perhaps_passing(
                f"answered {asked} with {came}", "expected a chat completion with a message."
            ) from error
        return content, choice.get("finish_reason") == "length"


def number_of(reply: str, high: float) -> float | None:
    """The number that a reply consists of; None where it consists of anything else."""
    text = reply.strip()
    if text.startswith("<think>"):
        text = text.partition("</think>")[2].strip()
    fence = next((one for one in _FENCES if text.startswith(one)), "")
    if fence and text.endswith("```") and len(text) >= len(fence) + 3:
        text = text[len(fence) : -3].strip()
    plain = _PLAIN.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
    if plain:
        if plain.group(2) is not None and float(plain.group(2)) != high:
            return None
        return _finite(float(plain.group(1)))
    try:
        value = from_json(text)
    except ValueError:
        return None
    if isinstance(value, dict):
        found = [value[name] for name in _SCORES if name in value]
        value = found[0] if len(found) == 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return _finite(value)


def _finite(value: float) -> float | None:
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number that no float holds
        return None


def open_chat(
    location: str,
    *,
    name: str,
    numbers: Mapping[str, Number] | None = None,
    texts: tuple[str, ...] = (),
    what: str = "Reward",
) -> tuple[Chat, dict[str, Any]]:
    """A chat from "http://host:port/v1?model=NAME&low=0&high=10", and the options beside it.

    Further: max_tokens, timeout, retries, backoff, key_env, key_file. Without a model the server's
    only one is taken.

    Args:
        location: the address with its options.
        name: begins what errors say of the server.
        numbers, texts: further options that the address may have.
        what: begins what errors say of the address.

    Raises:
        InputError: the address is wrong.
        RewardError: nothing answers there.
    """
    known = {
        "low": Number(float, -1e6, 1e6),
        "high": Number(float, -1e6, 1e6),
        "max_tokens": Number(int, 1, 100_000),
        **(numbers or {}),
        **ASKING,
    }
    url, options = read_address(location, known, texts=("model", *texts), what=what)
    stop = threading.Event()
    asking = {name: options.pop(name) for name in (*ASKING, "key") if name in options}
    asking.setdefault("timeout", 120.0)
    chat = {name: options.pop(name) for name in ("low", "high", "max_tokens") if name in options}
    if chat.get("low", 0.0) >= chat.get("high", 10.0):
        raise InputError(f'{what} "{shown(location)}": expected low below high.')
    if "instruction" in options:
        options["instruction"] = _instruction(options["instruction"])
    given = options.pop("model", "")
    server = Server(
        url.rstrip("/"),
        name=name,
        pause=stop.wait,
        smaller=", or ask for less at a time with ?concurrency=N",
        **asking,
    )
    if given:
        server.check()
    return Chat(server, given or _only_model(server), stop=stop, **chat), options


def _only_model(server: Server) -> str:
    """The name of the one model that a server has."""

    def read(answer: Answer) -> list[str]:
        try:
            return [str(one["id"]) for one in from_json(answer.body)["data"]]
        except (ValueError, LookupError, TypeError):
            return []

    def once() -> list[str]:
        return server.once("GET", None, _MOST, "for its models", read, "/models", CHECK_SECONDS)

    names = server.insist(once, min(server.retries, CHECK_RETRIES))
    if len(names) != 1:
        have = f"It has {listed(names)}" if names else "It does not say which it has"
        raise InputError(f"{server.name}: which model? {have}. Add ?model=NAME.")
    return names[0]


def _instruction(path: str) -> str:
    try:
        with Path(path).expanduser().open(encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "no text"
        raise InputError(f'instruction: "{shown(path)}" cannot be read ({why}).') from error
    if not text.strip() or len(text) > _LONGEST:
        raise InputError(
            f'instruction: "{shown(path)}" holds no text, or more than {_LONGEST} characters.'
        )
    return text
