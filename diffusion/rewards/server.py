"""A server that is asked again while what went wrong may pass, and the options of its address.

What may pass is tried again, with waits of 0.5, 1, 2, ... seconds: a connection that fails, 5xx,
408 and 429, and from a server that has answered well before also time-outs and answers that cannot
be read. Anything else is an error at once. The server is not trusted: see `exchange.py` for the
bounds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from diffusion.errors import InputError, RewardError, did_you_mean, shown
from diffusion.rewards.exchange import (
    Answer,
    ExchangeError,
    Late,
    Unreachable,
    Unreadable,
    exchange,
)

_T = TypeVar("_T")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
LONGEST_WAIT = 30.0  # seconds between two tries
CHECK_SECONDS, CHECK_RETRIES = 5.0, 3  # before a run; a server that comes back is for later
_PASSING = (408, 429)  # besides 5xx
_PROTOCOL = "Is the address right, and does the server speak this protocol?"


class Passing(Exception):
    """Another try may help."""


class Server:
    """Asks one server; any number of threads may.

    `timeout` seconds for a whole exchange; `retries` further tries after a first that failed;
    `backoff` seconds before the first of them, doubling up to 30; `key` a password, sent as a
    bearer token. `name` begins what errors say; `smaller` says how to send it less at a time.
    `pause` waits some seconds between two tries, and returns whether to give up.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        timeout: float = 30.0,
        retries: int = 6,
        backoff: float = 0.5,
        key: str | None = None,
        smaller: str = "",
        pause: Callable[[float], bool] | None = None,
    ) -> None:
        self.url, self.timeout, self.retries, self.backoff = url, timeout, retries, backoff
        self._key, self._smaller = key, smaller
        parts = urlsplit(url)
        # A cluster's proxy cannot reach this machine's servers.
        self._trust_env = parts.hostname not in _LOOPBACK
        address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self.name = f"{name} {shown(address)}"
        self._answered = False  # well, at least once
        self._pause = pause or _sleep

    def check(self) -> None:
        """Raises RewardError where no server listens, before any image has been made."""

        def listens() -> None:
            try:
                self._exchange("OPTIONS", self.url, min(self.timeout, CHECK_SECONDS), 1)
            except (Late, Unreadable):
                pass  # it may be busy, and is asked nothing yet

        self.insist(listens, min(self.retries, CHECK_RETRIES))

    def ask(
        self, body: Any, most: int, asked: str, read: Callable[[Answer], _T], path: str = ""
    ) -> _T:
        """What `read` makes of the answer to a POST of `body`, tried again while it may pass.

        `most` bytes of an answer; `asked` says what for in errors. `read` may raise Passing.
        """
        return self.insist(lambda: self.once("POST", body, most, asked, read, path))

    def once(
        self,
        method: str,
        body: Any,
        most: int,
        asked: str,
        read: Callable[[Answer], _T],
        path: str = "",
        seconds: float | None = None,
    ) -> _T:
        """One try. Raises Passing where another may help, else RewardError."""
        seconds = self.timeout if seconds is None else seconds
        try:
            answer = self._exchange(method, self.url + path, seconds, most, body)
        except Late as error:
            raise self.perhaps_passing(
                f"did not answer {asked} within {seconds:g} s",
                f"Allow more with ?timeout=SECONDS{self._smaller}.",
            ) from error
        except Unreadable as error:
            raise self.perhaps_passing(f"cannot be understood: {error}", _PROTOCOL) from error
        said = f"HTTP {answer.status} {shown(answer.body.decode(errors='replace'))}".strip()
        if answer.status >= 500 or answer.status in _PASSING:
            raise Passing(said)
        if 300 <= answer.status < 400:
            raise RewardError(
                f"{self.name} sends on to {json.dumps(shown(answer.location))} "
                f"(HTTP {answer.status}). Prompts and images are not sent to another address: "
                f"name that one, if it is the right one."
            )
        if not 200 <= answer.status < 300:
            hint = _PROTOCOL
            if answer.status == 401:
                hint = "Name its key with ?key_env=VARIABLE or ?key_file=FILE."
            raise RewardError(f"{self.name} refused {asked}: {said}. {hint}")
        value = read(answer)
        self._answered = True
        return value

    def _exchange(
        self, method: str, url: str, seconds: float, most: int, body: Any = None
    ) -> Answer:
        try:
            return exchange(
                method,
                url,
                seconds=seconds,
                most=most,
                body=body,
                key=self._key,
                trust_env=self._trust_env,
            )
        except Unreachable as error:
            raise Passing(str(error)) from error
        except (Late, Unreadable):
            raise
        except ExchangeError as error:
            raise RewardError(f"{self.name} cannot be asked: {error}.") from error

    def perhaps_passing(self, problem: str, hint: str) -> Exception:
        """A server that has never answered well is more likely the wrong one than a sick one."""
        return Passing(problem) if self._answered else RewardError(f"{self.name} {problem}. {hint}")

    def insist(self, ask: Callable[[], _T], retries: int | None = None) -> _T:
        """What `ask` returns, tried again while what it raises may pass."""
        tries = 1 + (self.retries if retries is None else retries)
        for attempt in range(tries):
            try:
                return ask()
            except Passing as error:
                problem = str(error)
            if attempt + 1 < tries:
                if attempt == 0 and self._answered:
                    _warn(f"{self.name} failed: {problem}. Trying {tries - 1} more times.")
                if self._pause(min(LONGEST_WAIT, self.backoff * 2.0 ** min(attempt, 60))):
                    break
        raise RewardError(
            f"{self.name} failed {tries} {'times' if tries > 1 else 'time'}: {problem}. "
            f"Start it, check host and port, or allow more with ?retries=N."
        )


class Number(NamedTuple):
    """A numeric option of an address: `convert` reads it, `least` and `most` bound it."""

    convert: Callable[[str], float]
    least: float
    most: float


ASKING: Mapping[str, Number] = {
    "timeout": Number(float, 1e-3, 86_400),
    "retries": Number(int, 0, 10_000),
    "backoff": Number(float, 0, LONGEST_WAIT),
}


def read_address(
    url: str,
    numbers: Mapping[str, Number],
    texts: tuple[str, ...] | None = None,
    what: str = "Reward",
) -> tuple[str, dict[str, Any]]:
    """The address without its options, and these: `numbers`, `key`, and those in `texts`.

    Where `texts` is None, other parameters stay in the address; else they are refused. What errors
    say of the address begins with `what`.
    Raises InputError on an address that cannot be one, and an option out of its range.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f'{what} "{shown(url)}" is no address: {error}.') from error
    if not host:
        raise InputError(f'{what} "{shown(url)}" names no host: expected http://host:port/path.')
    options: dict[str, Any] = {}
    others: list[tuple[str, str]] = []
    keys = {"key_env": _key_of_variable, "key_file": _key_of_file}
    for key, text in parse_qsl(parts.query, keep_blank_values=True):
        if key in keys:
            options["key"] = keys[key](text)
        elif key in numbers:
            options[key] = _number(f'{what} "{shown(url)}"', key, text, numbers[key])
        elif texts is None:
            others.append((key, text))
        elif key in texts:
            options[key] = text
        else:
            known = [*texts, *numbers, *keys]
            raise InputError(
                f'{what} "{shown(url)}" has no option "{shown(key)}".{did_you_mean(key, known)}'
            )
    return urlunsplit(parts._replace(query=urlencode(others))), options


def _number(name: str, key: str, text: str, option: Number) -> float:
    try:
        value = option.convert(text)
        valid = option.least <= value <= option.most
    except ValueError:
        valid = False
    if not valid:
        raise InputError(
            f"{name}: expected {key} of at least {option.least} and at most "
            f'{option.most:g}, not "{shown(text)}".'
        )
    return value


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


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _warn(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"warning: {text}", file=sys.stderr)  # above a bar, if there is one
