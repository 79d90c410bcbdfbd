"""One HTTP exchange with a server that is not trusted: bounded in time, in bytes, in where it goes.

time     one deadline from connecting to the last byte, however slowly these arrive
bytes    those sent, and again those that they unpack to
where    no redirects: what is sent goes to the address given, or nowhere
"""

from __future__ import annotations

import contextlib
import socket
import threading
import zlib
from http.client import HTTPException
from typing import Any, NamedTuple

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

CONNECT_SECONDS = 10.0
PIECE = 65_536  # bytes read at once
_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class Answer(NamedTuple):
    """What came back. `location` is where a redirect points, "" elsewhere."""

    status: int
    location: str
    body: bytes


class ExchangeError(Exception):
    """The exchange cannot be made, now or later."""


class Unreachable(ExchangeError):
    """Nobody answered, or the connection broke."""


class Late(ExchangeError):
    """No whole answer before the deadline."""


class Unreadable(ExchangeError):
    """The answer is too large, or is packed in a way that cannot be undone."""


def exchange(
    method: str,
    url: str,
    *,
    seconds: float,
    most: int,
    body: Any = None,
    key: str | None = None,
    trust_env: bool = True,
) -> Answer:
    """Send `body` as JSON and return the answer.

    Args:
        seconds: the deadline of the whole exchange.
        most: bytes of an answer's body, packed and unpacked.
        key: sent as a bearer token.
        trust_env: whether proxies and certificates are taken from the environment.

    Raises:
        ExchangeError: one of its kinds above.
    """
    sockets: list[Any] = []
    outcome: list[Answer | BaseException] = []

    def work() -> None:
        try:
            with requests.Session() as session:
                session.trust_env = trust_env
                session.mount("http://", _Adapter(sockets))
                session.mount("https://", _Adapter(sockets))
                outcome.append(_ask(session, method, url, seconds, most, body, key))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, name="reward exchange", daemon=True)
    thread.start()
    late = True
    try:
        thread.join(seconds)
        late = thread.is_alive()
    finally:
        if late:  # it ends once its socket does; what it then says does not count
            for one in sockets:
                with contextlib.suppress(Exception):
                    socket.socket.shutdown(one, socket.SHUT_RDWR)
    if late:
        raise Late
    if isinstance(outcome[0], BaseException):
        raise _sorted(outcome[0])
    return outcome[0]


def _ask(
    session: requests.Session,
    method: str,
    url: str,
    seconds: float,
    most: int,
    body: Any,
    key: str | None,
) -> Answer:
    def authorise(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {key}"
        return request

    response = session.request(
        method,
        url,
        json=body,
        headers={"Accept-Encoding": "identity", "Connection": "close"},
        auth=authorise if key else None,
        timeout=(min(seconds, CONNECT_SECONDS), seconds),
        allow_redirects=False,
        stream=True,
    )
    with response:
        location = response.headers.get("Location", "") if response.is_redirect else ""
        packed = _read(response.raw, most)
        coding = response.headers.get("Content-Encoding", "").strip().lower()
        return Answer(response.status_code, location, _unpack(packed, coding, most))


def _read(raw: Any, most: int) -> bytes:
    data = bytearray()
    while piece := raw.read(PIECE, decode_content=False):
        data += piece
        if len(data) > most:
            raise Unreadable(f"its answer is longer than {most:,} bytes")
    return bytes(data)


def _unpack(data: bytes, coding: str, most: int) -> bytes:
    if coding in ("", "identity") or not data:
        return data
    if coding not in _WBITS:
        raise Unreadable(f'its answer is packed as "{coding[:40]}", which was not asked for')
    unpacker = zlib.decompressobj(_WBITS[coding])
    try:
        plain = unpacker.decompress(data, most + 1)
    except zlib.error as error:
        raise Unreadable(f"its answer is no {coding} ({error})") from error
    if len(plain) > most:
        raise Unreadable(f"its answer unpacks to more than {most:,} bytes")
    if not unpacker.eof:
        raise Unreadable(f"its answer is torn {coding}")
    return plain


def _sorted(error: BaseException) -> BaseException:
    """Errors of the libraries as one of ours; any other is a bug and stays."""
    if isinstance(error, (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError)):
        return Late()
    broken = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
    if isinstance(error, broken + (urllib3.exceptions.HTTPError, HTTPException, OSError)):
        if not isinstance(error, requests.RequestException) or isinstance(error, broken):
            return Unreachable(_reason(error))
    if isinstance(error, (requests.RequestException, UnicodeError)):
        return ExchangeError(_reason(error))
    return error


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words: "Connection refused" rather than a nest of classes."""
    text = " ".join(str(error).split())
    for known in ("Connection refused", "Name or service not known", "Connection reset by peer"):
        if known in text:
            return known
    return f"{type(error).__name__}: {text[:120]}"


class _Adapter(HTTPAdapter):
    """Notes the sockets that it opens, so that another thread can end an exchange."""

    def __init__(self, sockets: list[Any]) -> None:
        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        class Secure(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        class PlainPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Secure

        self._pools = {"http": PlainPool, "https": SecurePool}
        super().__init__()

    def init_poolmanager(self, *args: Any, **kw: Any) -> None:
        super().init_poolmanager(*args, **kw)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *args: Any, **kw: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kw)
        manager.pool_classes_by_scheme = self._pools
        return manager
