"""A connection to an openpi policy server, and answers collected from several.

On opening, the server sends its metadata; then each request gets an answer. Whatever the server
does instead becomes one line, in bounded time and memory, and the next request finds it again once
it is well.
"""

from __future__ import annotations

import re
import socket as sockets
import threading
import time
import warnings
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

from offline.errors import InputError, shown
from robots.serving.wire import MAX_MESSAGE_BYTES, WireError, one_line, unpack_map

try:
    from websockets.exceptions import (
        ConnectionClosed,
        InvalidHandshake,
        InvalidProxy,
        InvalidStatus,
        InvalidURI,
    )
    from websockets.sync import client as websockets_client
except ImportError as error:  # pragma: no cover
    raise InputError('a policy server needs websockets: pip install "genpol[serve]"') from error

ClientConnection = websockets_client.ClientConnection
_connect: Any = getattr(websockets_client, "reconnect", websockets_client.connect)
Answers = list[dict[str, Any]]

_LONGEST_WAIT = 1e6  # seconds
_TOO_BIG = 1009  # websocket close code
_SMALL = 2**15  # bytes that a connection takes even when the other side reads nothing
_RATE_LIMIT = re.compile(r"rate limit: .{1,100}; wait ([0-9.e+-]{1,20}) s\b")


class Link:
    """A connection that opens when it is needed, and once more when it was lost.

    Not for two threads at once.

    Args:
        url: ws://host:port or wss://...
        api_key: sent as `Authorization: Api-Key ...`.
        timeout: seconds to wait for the connection, and for each answer.

    Attributes:
        metadata: what the server said on connecting; empty before.
    """

    def __init__(self, url: str, *, api_key: str | None, timeout: float) -> None:
        if urlsplit(url).scheme not in ("ws", "wss") or not urlsplit(url).netloc:
            raise InputError(f'"{shown(url)}" is no policy server: expected ws://host:port')
        if not 0 < timeout <= _LONGEST_WAIT:
            raise InputError(f"expected a time-out above 0 and up to {_LONGEST_WAIT:.0f} s")
        self.url, self.metadata = url, dict[str, Any]()
        self._api_key, self._timeout = api_key, timeout
        self._socket: ClientConnection | None = None
        self._closing = ExitStack()
        self._ended = False

    def another(self) -> Link:
        """A further connection to the same server, not open yet."""
        return Link(self.url, api_key=self._api_key, timeout=self._timeout)

    def exchange(self, frame: bytes) -> dict[str, Any]:
        """Send a packed request and return the answer.

        A connection that turns out to be lost is opened anew and the request sent again, once. A
        server that asks to wait is asked again after that, within `timeout`.

        Raises:
            InputError: not reachable, too slow, or the server answered an error.
        """
        end = time.monotonic() + self._timeout
        while True:
            answer = self._ask(frame)
            if not isinstance(answer, str):
                try:
                    return unpack_map(answer)
                except WireError as error:
                    raise InputError(f"{self.url} answered with no message: {error}") from error
            told = _RATE_LIMIT.match(answer)
            wait = float(told[1]) if told and _is_number(told[1]) else 0.0
            if not 0 < wait < end - time.monotonic():
                raise InputError(f"{self.url} answered an error: {_last_line(answer)}")
            warnings.warn(f"{self.url} limits the rate of requests: they wait", stacklevel=2)
            time.sleep(wait)

    def _ask(self, frame: bytes) -> bytes | str:
        for last_try in (False, True):
            socket = self._fresh() or self.open()
            try:
                self._send(socket, frame)
                return socket.recv(timeout=self._timeout)
            except TimeoutError as error:
                self._drop()  # or its late answer would be taken for the next one's
                raise InputError(self._too_slow()) from error
            except (ConnectionClosed, OSError) as error:
                self._drop()
                sent, told = getattr(error, "sent", None), getattr(error, "rcvd", None)
                if told is not None and told.code == _TOO_BIG:
                    raise InputError(
                        f"{self.url} refuses messages this big: {shown(told.reason)}"
                    ) from error
                if sent is not None and sent.code == _TOO_BIG:
                    raise InputError(
                        f"{self.url} answered with more than {MAX_MESSAGE_BYTES} bytes"
                    ) from error
                if last_try or self._ended:
                    raise InputError(
                        f"{self.url} closed the connection: {one_line(error, 200)}"
                    ) from error
        raise AssertionError

    def _fresh(self) -> ClientConnection | None:
        """The open connection, if nothing lies there that was not asked for.

        Such an answer would be taken for the next request's, and each later one be late by one.
        """
        if self._socket is None:
            return None
        try:
            self._socket.recv(timeout=0)
        except TimeoutError:
            return self._socket
        except (ConnectionClosed, OSError):
            pass
        self._drop()
        return None

    def _send(self, socket: ClientConnection, frame: bytes) -> None:
        """Send; gives up after the time-out on a server that takes nothing in.

        Raises:
            TimeoutError: it did.
        """
        if len(frame) < _SMALL:
            socket.send(frame)
            return
        late = threading.Event()

        def give_up() -> None:
            late.set()
            _break(socket)

        timer = threading.Timer(self._timeout, give_up)
        timer.daemon = True
        timer.start()
        try:
            socket.send(frame)
        except (ConnectionClosed, OSError) as error:
            if late.is_set():
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()

    def open(self) -> ClientConnection:
        """Connect and read the metadata.

        Raises:
            InputError: one line that says what is in the way.
        """
        if self._ended:
            raise InputError(f"the connection to {self.url} was closed")
        headers = {"Authorization": f"Api-Key {self._api_key}"} if self._api_key else None
        stack = ExitStack()
        try:
            opening = _connect(
                self.url,
                compression=None,  # as openpi's client: arrays hardly shrink
                max_size=MAX_MESSAGE_BYTES,
                additional_headers=headers,
                open_timeout=self._timeout,
                close_timeout=1,
            )
            # What robots see goes to the server that was named and to no other: a redirect is an
            # error. websockets before 17 follows none.
            opening.process_redirect = lambda error: error
            socket = stack.enter_context(opening)
            greeting = socket.recv(timeout=self._timeout)
            if isinstance(greeting, str):
                raise InputError(f"{self.url} answered an error: {_last_line(greeting)}")
            self.metadata = unpack_map(greeting)
        except BaseException as error:
            with suppress(Exception):
                stack.close()
            if isinstance(error, WireError):
                raise InputError(
                    f"{self.url} does not speak openpi's websocket protocol: {error}"
                ) from error
            if isinstance(error, InputError) or not isinstance(error, Exception):
                raise
            raise InputError(self._reason(error)) from error
        self._socket, self._closing = socket, stack
        if self._ended:  # meanwhile
            self._drop()
            raise InputError(f"the connection to {self.url} was closed")
        return socket

    def end(self) -> None:
        """Break the connection for good, from any thread: a request under way fails at once."""
        self._ended = True
        if (socket := self._socket) is not None:
            _break(socket)

    def close(self) -> None:
        """Close the connection, if it is open."""
        self._socket = None
        with suppress(Exception):  # the other side may be gone
            self._closing.close()

    def _drop(self) -> None:
        """Close without waiting for the other side."""
        if self._socket is not None:
            _break(self._socket)
        self.close()

    def _reason(self, error: Exception) -> str:
        url = self.url
        if isinstance(error, TimeoutError):
            return self._too_slow()
        if isinstance(error, InvalidStatus):
            status = error.response.status_code
            if status in (401, 403):
                what = "the API key" if self._api_key else "a client without an API key"
                return f"{url} refused {what} (HTTP {status}): set GENPOL_UPSTREAM_API_KEY"
            if status == 503:
                return (
                    f"{url} serves as many clients as it may (HTTP 503): stop others, or raise "
                    "--max-connections of genpol serve"
                )
            if 300 <= status < 400:
                return f"{url} sends clients to another address, which is not followed"
            return f"{url} refused the connection with HTTP {status}: is it a policy server?"
        if isinstance(error, InvalidURI | InvalidProxy):
            return f'"{url}" is no policy server: expected ws://host:port ({one_line(error, 200)})'
        if isinstance(error, InvalidHandshake | ConnectionClosed | EOFError):
            return f"{url} does not speak openpi's websocket protocol: {one_line(error, 200)}"
        if isinstance(error, OSError):
            reason = error.strerror or one_line(error, 200)
            return f"no policy server at {url} ({reason}): is it running, and is the port right?"
        return f"{url}: {one_line(error, 200)}"

    def _too_slow(self) -> str:
        return (
            f"{self.url} did not answer within {self._timeout:g} s: is it busy, or no policy "
            "server? A longer --timeout, or fewer requests in --parallel, may help"
        )


def _break(socket: ClientConnection) -> None:
    """End what blocks on it, in whatever thread."""
    with suppress(OSError):
        socket.socket.shutdown(sockets.SHUT_RDWR)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _last_line(text: str) -> str:
    """Of a traceback, its last line: the error itself."""
    return shown(text.rstrip().rpartition("\n")[2].strip(), 400) or "(empty)"


def gather(futures: list[list[Future[dict[str, Any]]]], deadline: float | None) -> list[Answers]:
    """The answers of each row: all of them, or after `deadline` seconds those that arrived.

    Requests that have not started are dropped; those under way end on their own threads, so that
    no connection is left with an answer nobody has read.
    """
    everything = [future for row in futures for future in row]
    try:
        if deadline is None:
            wait(everything, return_when=FIRST_EXCEPTION)
            for future in everything:
                if future.done():
                    future.result()  # raises what went wrong
            return [[future.result() for future in row] for row in futures]
        wait(everything, timeout=deadline)
        arrived = [_at_least_one(row) for row in futures]
        fewest = min(len(answers) for answers in arrived)
        return [answers[:fewest] for answers in arrived]
    finally:
        for future in everything:
            future.cancel()


def _at_least_one(row: list[Future[dict[str, Any]]]) -> Answers:
    while True:
        done = [future for future in row if future.done() and not future.cancelled()]
        good = [future.result() for future in done if future.exception() is None]
        if good:
            return good
        if done:  # what failed once would fail on and on
            for future in row:
                future.cancel()
        pending = [future for future in row if not future.done()]
        if not pending:
            raise done[0].exception() or AssertionError
        wait(pending, return_when=FIRST_COMPLETED)
