"""A policy server that speaks openpi's websocket protocol; robots need only `openpi-client`.

On connecting, the client is sent the metadata. It then sends observations, maps of arrays without
a batch axis, and each is answered with a map that has "actions" (H, A), in the environment's
units, and "server_timing". What cannot be answered gets a text frame with one line, which openpi's
client raises; the connection goes on. `GET /healthz` answers OK.

What a message means is its `Session`'s affair (`robots/serving/sessions.py`); each connection has
one. Policies compute in turns (`robots/serving/turns.py`), so that nobody waits for the whole of
what somebody else asked for.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import ipaddress
import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

from offline.errors import InputError
from offline.threads import use_threads
from robots.serving.rate_limit import RateLimit
from robots.serving.turns import Client, Dropped, Steps, Turns
from robots.serving.wire import MAX_MESSAGE_BYTES, one_line, pack, unpack_map

try:
    from websockets.asyncio.server import Request, Response, ServerConnection
    from websockets.asyncio.server import serve as listen
    from websockets.exceptions import ConnectionClosed
    from websockets.protocol import State
except ImportError as error:  # pragma: no cover
    raise InputError('serving needs websockets: pip install "genpol[serve]"') from error

logger = logging.getLogger(__name__)
_library_logger = logging.getLogger(f"{__name__}.websockets")
_library_logger.setLevel(logging.CRITICAL)  # port scans and aborted handshakes are no news
# Bigger messages than the limit are read and answered with a line; beyond this many times the
# limit they are not read, and the connection is closed with code 1009.
_UNREAD = 2


class Session(Protocol):
    """One client's conversation. Called from one worker thread, never two calls at once."""

    def infer(self, request: dict[str, Any], arrived: float) -> dict[str, Any] | Steps:
        """Answer a request; raises InputError where it cannot be used.

        Args:
            request: the message.
            arrived: when (`perf_counter`), which a deadline counts from.

        Returns:
            the answer, or a generator of steps with it at the end: see `robots/serving/turns.py`.
        """

    def close(self) -> None:
        """The client has gone. Whoever waits for something here makes all others wait."""


class PolicyServer:
    """A server of policies: `run` in the foreground, or by `with` in the background.

    Args:
        make_session: makes a connection's session; called in the worker thread.
        host: address to listen on. Anything but loopback lets others in, and needs an `api_key`.
        port: 0 picks a free one.
        api_key: what clients must send as `Authorization: Api-Key ...`.
        max_message_bytes: bigger messages are answered with an error.
        rate_limit: requests per second from one address, with bursts of one second's worth; what
            exceeds it is answered with an error.
        max_connections: further clients are refused with HTTP 503.
        metadata: sent to each client on connecting.
        threads: of PyTorch, for the policies' compute; default as many as this process has. They
            have to be said in the worker, see `offline.threads`.
        ready: called with the address once listening.
        insecure: listen where others can reach it without an `api_key`.
        ended: called once nobody is served any more.

    Attributes:
        address: such as "ws://127.0.0.1:8000", once listening.

    Raises:
        InputError: a limit that is not positive, a key that cannot be sent, or none where one is
            needed.
    """

    def __init__(
        self,
        make_session: Callable[[], Session],
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        rate_limit: float = 1000.0,
        max_connections: int = 128,
        metadata: Mapping[str, Any] | None = None,
        threads: int | None = None,
        ready: Callable[[str], None] | None = None,
        insecure: bool = False,
        ended: Callable[[], None] | None = None,
    ) -> None:
        if max_message_bytes < 1 or not rate_limit > 0 or max_connections < 1:
            raise InputError("message size, rate limit and connections must be positive")
        check_access(host, api_key, insecure)
        self.address = ""
        self._make_session, self._host, self._port = make_session, host, port
        self._api_key, self._max_bytes = api_key, max_message_bytes
        self._rates = RateLimit(rate_limit)
        self._max_connections, self._connections = max_connections, 0
        self._metadata = pack(dict(metadata or {}))
        self._ready, self._ended = ready, ended
        # One worker for the policies' compute, while the event loop stays responsive.
        self._turns = Turns(begin=lambda: _use_threads(threads))
        self._failures: set[str] = set()  # kinds of exceptions whose traceback was logged
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    # -- running

    def run(self) -> None:
        """Serve until Ctrl-C or SIGTERM.

        Raises:
            InputError: the port is taken, or the host is none of this machine's.
        """
        asyncio.run(self._serve(signals=True))

    def __enter__(self) -> PolicyServer:
        started, failure = threading.Event(), list[BaseException]()
        after = self._ready

        def ready(address: str) -> None:
            if after is not None:
                after(address)
            started.set()

        self._ready = ready

        def background() -> None:
            try:
                asyncio.run(self._serve(signals=False))
            except BaseException as error:
                failure.append(error)
            finally:
                started.set()

        self._thread = threading.Thread(target=background, name="policy-server", daemon=True)
        self._thread.start()
        started.wait()
        if failure:
            raise failure[0]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._loop and self._stop and self._thread
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self, *, signals: bool) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = await listen(
                self._converse,
                self._host,
                self._port,
                process_request=self._admit,
                # Browsers name an origin, robots do not. Without a key, a page that somebody on
                # this machine has open must not be able to talk to the policy.
                origins=None if self._api_key else [None],
                compression=None,
                max_size=_UNREAD * self._max_bytes,
                max_queue=2,
                close_timeout=2,
                logger=_library_logger,
            )
        except (OSError, OverflowError) as error:
            raise InputError(
                f"cannot listen on {self._host}:{self._port} "
                f"({getattr(error, 'strerror', None) or error}): pass another --port or --host"
            ) from error
        async with server:
            port = next(iter(server.sockets)).getsockname()[1]
            host = f"[{self._host}]" if ":" in self._host else self._host
            self.address = f"ws://{host}:{port}"
            if not self._api_key and not is_loopback(self._host):
                logger.warning(
                    "anyone who reaches %s can use this policy: it asks for no API key",
                    self.address,
                )
            if signals:
                for number in (signal.SIGINT, signal.SIGTERM):
                    self._loop.add_signal_handler(number, self._leave)
            if self._ready:
                self._ready(self.address)
            await self._stop.wait()
        await asyncio.to_thread(self._turns.close)
        if self._ended is not None:
            await asyncio.to_thread(self._ended)

    def _leave(self) -> None:
        """The first signal asks; the next one meets Python's own handler, and insists."""
        assert self._loop and self._stop
        self._stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.remove_signal_handler(number)

    # -- one client

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._api_key:
            given = request.headers.get_all("Authorization")
            wanted = f"Api-Key {self._api_key}".encode()
            if len(given) != 1 or not hmac.compare_digest(
                given[0].encode("utf-8", "replace"), wanted
            ):
                return connection.respond(
                    http.HTTPStatus.UNAUTHORIZED, "expected the header Authorization: Api-Key ...\n"
                )
        if self._connections >= self._max_connections:
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                f"already serving {self._max_connections} clients\n",
            )
        return None

    async def _converse(self, client: ServerConnection) -> None:
        self._connections += 1
        turn = Client()
        session: Session | None = None
        try:
            await client.send(self._metadata)
            session = await self._compute(turn, self._make_session)
            previous_ms: float | None = None
            while True:
                message = await client.recv()
                started = time.perf_counter()
                await client.send(await self._answer(session, client, turn, message, previous_ms))
                previous_ms = 1e3 * (time.perf_counter() - started)
        except (ConnectionClosed, Dropped):
            pass
        except Exception as error:
            self._log("cannot serve a client", error)
            await client.close(1011, one_line(error, 100))
        finally:
            self._connections -= 1
            if session is not None:
                with suppress(Dropped):
                    await self._compute(turn, session.close)

    async def _answer(
        self,
        session: Session,
        client: ServerConnection,
        turn: Client,
        message: bytes | str,
        previous_ms: float | None,
    ) -> bytes | str:
        """The frame to send back: bytes, or one line of text for an error."""
        address, arrived = client.remote_address, time.perf_counter()
        try:
            self._rates.take(str(address[0]) if address else "")
            request = unpack_map(message, max_bytes=self._max_bytes)
            response = await self._compute(turn, lambda: session.infer(request, arrived), client)
            timing = {"infer_ms": 1e3 * (time.perf_counter() - arrived)}
            if previous_ms is not None:
                timing["prev_total_ms"] = previous_ms
            return pack({**response, "server_timing": timing})
        except InputError as error:
            return one_line(error)
        except Dropped:
            raise
        except Exception as error:  # a bug of the policy's must not end everybody's service
            self._log("the policy failed", error)
            return f"internal error: {type(error).__name__}: {one_line(error)}"

    async def _compute(
        self, turn: Client, work: Callable[[], Any], client: ServerConnection | None = None
    ) -> Any:
        """The result of some work, unless the client for whom it is done goes away before."""
        if client is None:
            return await asyncio.wrap_future(self._turns.submit(turn, work))
        done = asyncio.wrap_future(
            self._turns.submit(turn, work, wanted=lambda: client.state is State.OPEN)
        )
        gone = asyncio.ensure_future(client.wait_closed())
        try:
            await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not done.done():
            done.add_done_callback(lambda late: late.exception())  # nobody asks for it any more
            raise Dropped
        return done.result()

    def _log(self, what: str, error: Exception) -> None:
        """One line; with the traceback the first time that such an exception comes."""
        kind = type(error).__name__
        trace = None if kind in self._failures or isinstance(error, InputError) else error
        self._failures.add(kind)
        logger.error("%s: %s: %s", what, kind, one_line(error, 300), exc_info=trace)


def check_access(host: str, api_key: str | None, insecure: bool) -> None:
    """Check who gets in.

    Raises:
        InputError: an API key that cannot be sent, or none where others can reach the server.
    """
    if api_key is not None and not re.fullmatch(r"[!-~]([ -~]*[!-~])?", api_key):
        raise InputError("an API key is one line of printable ASCII characters, and not empty")
    if api_key is None and not insecure and not is_loopback(host):
        raise InputError(
            f"anyone who reaches {host or 'this machine'} could use this policy: give an API key "
            "(--api-key-file, $GENPOL_API_KEY), or pass --insecure where all who can are trusted"
        )


def _use_threads(count: int | None) -> None:
    """In a new thread, which starts with PyTorch's default for its matrix products otherwise."""
    import torch

    use_threads(torch.get_num_threads() if count is None else count)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
