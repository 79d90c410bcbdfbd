"""A connection to an openpi policy server, and answers collected from several.

On opening, the server sends its metadata; then each request gets an answer.
"""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

from offline.errors import InputError
from robots.serving.wire import unpack_map

try:
    from websockets.exceptions import (
        ConnectionClosed,
        InvalidHandshake,
        InvalidProxy,
        InvalidStatus,
        InvalidURI,
    )
    from websockets.sync.client import ClientConnection, connect
except ImportError as error:  # pragma: no cover
    raise InputError('a policy server needs websockets: pip install "genpol[serve]"') from error

Answers = list[dict[str, Any]]

_MAX_ANSWER_BYTES = 64 * 2**20
_TOO_BIG = 1009  # websocket close code


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
            raise InputError(f'"{url}" is no policy server: expected ws://host:port')
        self.url, self.metadata = url, dict[str, Any]()
        self._api_key, self._timeout = api_key, timeout
        self._socket: ClientConnection | None = None
        self._closing = ExitStack()

    def another(self) -> Link:
        """A further connection to the same server, not open yet."""
        return Link(self.url, api_key=self._api_key, timeout=self._timeout)

    def exchange(self, frame: bytes) -> dict[str, Any]:
        """Send a packed request and return the answer.

        A connection that turns out to be lost is opened anew and the request sent again, once.

        Raises:
            InputError: not reachable, too slow, or the server answered an error.
        """
        for last_try in (False, True):
            socket = self._socket or self.open()
            try:
                socket.send(frame)
                answer = socket.recv(timeout=self._timeout)
                break
            except TimeoutError as error:
                self.close()  # or its late answer would be taken for the next one's
                raise InputError(self._too_slow()) from error
            except (ConnectionClosed, OSError) as error:
                self.close()
                told = getattr(error, "rcvd", None)
                if told is not None and told.code == _TOO_BIG:
                    raise InputError(
                        f"{self.url} refuses messages this big: {told.reason}"
                    ) from error
                if last_try:
                    raise InputError(f"{self.url} closed the connection: {_line(error)}") from error
        if isinstance(answer, str):
            raise InputError(f"{self.url} answered an error: {_last_line(answer)}")
        return unpack_map(answer, max_bytes=_MAX_ANSWER_BYTES)

    def open(self) -> ClientConnection:
        """Connect and read the metadata.

        Raises:
            InputError: one line that says what is in the way.
        """
        headers = {"Authorization": f"Api-Key {self._api_key}"} if self._api_key else None
        stack = ExitStack()
        try:
            socket = stack.enter_context(
                connect(
                    self.url,
                    compression=None,  # as openpi's client: arrays hardly shrink
                    max_size=_MAX_ANSWER_BYTES,
                    additional_headers=headers,
                    open_timeout=self._timeout,
                    close_timeout=1,
                )
            )
            greeting = socket.recv(timeout=self._timeout)
            if isinstance(greeting, str):
                raise InputError(f"{self.url} answered an error: {_last_line(greeting)}")
            self.metadata = unpack_map(greeting, max_bytes=_MAX_ANSWER_BYTES)
        except BaseException as error:
            with suppress(Exception):
                stack.close()
            if isinstance(error, InputError) or not isinstance(error, Exception):
                raise
            raise InputError(self._reason(error)) from error
        self._socket, self._closing = socket, stack
        return socket

    def close(self) -> None:
        """Close the connection, if it is open."""
        self._socket = None
        with suppress(Exception):  # the other side may be gone
            self._closing.close()

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
            return f"{url} refused the connection with HTTP {status}: is it a policy server?"
        if isinstance(error, InvalidURI | InvalidProxy):
            return f'"{url}" is no policy server: expected ws://host:port ({_line(error)})'
        if isinstance(error, InvalidHandshake | ConnectionClosed | EOFError):
            return f"{url} does not speak openpi's websocket protocol: {_line(error)}"
        if isinstance(error, OSError):
            reason = error.strerror or _line(error)
            return f"no policy server at {url} ({reason}): is it running, and is the port right?"
        return f"{url}: {_line(error)}"

    def _too_slow(self) -> str:
        return (
            f"{self.url} did not answer within {self._timeout:g} s: is it busy, or no policy "
            "server? A longer --timeout, or fewer requests in --parallel, may help"
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _last_line(text: str) -> str:
    """Of a traceback, its last line: the error itself."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:400] if lines else "(empty)"


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
        done = [future for future in row if future.done()]
        good = [future.result() for future in done if future.exception() is None]
        if good:
            return good
        if len(done) == len(row):
            raise done[0].exception() or AssertionError
        wait([future for future in row if not future.done()], return_when=FIRST_COMPLETED)
