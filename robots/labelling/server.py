"""Serves the page on loopback: the list of episodes, their films, and what a click writes.

    GET  /             the page, with label.css and label.js
    GET  /state        {"name", "file", "marks", "episodes": [{"episode", "steps", "said", LABEL}]}
    GET  /film/INDEX   the film of an episode; `film.py` has the format
    POST /label        {"episode": INDEX, LABEL}
    POST /done         ends the server

LABEL is "label": {"success": true, false or null, "moment": seconds or null}, or null where there
is none. Whoever is not on this machine, and pages of other addresses that this machine's browser
shows, are refused.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, ValidationError

from offline.data.episodes import Episodes
from offline.errors import InputError, shown
from robots.datasets.labels import Label, own_index
from robots.labelling.film import cameras_of, film
from robots.labelling.sheet import Sheet

HOST = "127.0.0.1"
ASSETS = Path(__file__).parent / "assets"
PAGES = {
    "/": ("label.html", "text/html; charset=utf-8"),
    "/label.css": ("label.css", "text/css; charset=utf-8"),
    "/label.js": ("label.js", "text/javascript; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'"
)
FILMS = 3  # kept in memory
LONGEST = 4096  # bytes of a request's body
FPS = 20.0
"""Where the dataset does not say: films are for looking at, and no moment can be marked."""


class Said(BaseModel):
    """What one says of an episode."""

    model_config = ConfigDict(extra="forbid", strict=True)
    success: bool | None
    moment: Annotated[float, Ge(0), Le(1e6)] | None = None


class Given(BaseModel):
    """The body of POST /label."""

    model_config = ConfigDict(extra="forbid", strict=True)
    episode: int
    label: Said | None


class Labelling:
    """A dataset and its sheet, as the page sees them; safe for several threads.

    Args:
        open_episodes: opens the dataset. It is called again for each page, so that what was
            recorded meanwhile appears.
        sheet: where labels go.
        fps: frames per second of films. None: the dataset's, else `FPS`.
        height: pixels of films; higher ones are made smaller.
    """

    def __init__(
        self,
        open_episodes: Callable[[], Episodes],
        sheet: Sheet,
        *,
        fps: float | None = None,
        height: int = 480,
    ) -> None:
        self.sheet = sheet
        self._open, self._fps, self._height = open_episodes, fps, height
        self._lock = threading.Lock()
        self._films: OrderedDict[int, bytes] = OrderedDict()
        self._said: dict[int, bool | None] = {}
        self._take(open_episodes())

    def _take(self, episodes: Episodes) -> None:
        self.episodes = episodes
        self._places = {own_index(episodes, place): place for place in range(len(episodes))}

    def state(self) -> dict[str, Any]:
        """What /state answers; the dataset is opened again."""
        with self._lock:
            self._take(self._open())
            labels = self.sheet.read()
            return {
                "name": str(self.episodes.meta.get("path") or "dataset"),
                "file": str(self.sheet.path),
                "marks": self._stored_fps() is not None,
                "episodes": [
                    {
                        "episode": index,
                        "steps": int(self.episodes.lengths[place]),
                        "said": self._says(index, place),
                        "label": _as_json(labels.get(index)),
                    }
                    for index, place in self._places.items()
                ],
            }

    def film(self, index: int) -> bytes:
        """The film of an episode.

        Raises:
            InputError: there is no such episode, or it cannot be read.
        """
        with self._lock:  # readers of datasets are not made for several threads
            place = self._place(index)
            if index not in self._films:
                fps = self._fps or self._stored_fps() or FPS
                made = film(
                    self.episodes[place], cameras_of(self.episodes), fps=fps, height=self._height
                )
                self._films[index] = made
                while len(self._films) > FILMS:
                    self._films.popitem(last=False)
            self._films.move_to_end(index)
            return self._films[index]

    def put(self, index: int, label: Label | None) -> None:
        """Write what is said of an episode.

        Raises:
            InputError: there is no such episode, its moment lies outside of it, or the file cannot
                be written.
        """
        place = self._place(index)
        if label is not None and label.moment is not None:
            fps = self._stored_fps()
            if fps is None:
                raise InputError("the dataset has no frames per second: moments mean nothing in it")
            if label.moment > self.episodes.lengths[place] / fps + 1e-6:
                raise InputError(f"the moment {label.moment:g} s lies behind episode {index}")
        self.sheet.put(index, label)

    def _place(self, index: int) -> int:
        if index not in self._places:
            raise InputError(f"there is no episode {index}")
        return self._places[index]

    def _stored_fps(self) -> float | None:
        fps = self.episodes.meta.get("fps")
        return float(fps) if isinstance(fps, int | float) and 0 < fps < 1e6 else None

    def _says(self, index: int, place: int) -> bool | None:
        """What the dataset itself says, where that is known without reading the pictures."""
        success_of = getattr(self.episodes, "success_of", None)
        if index not in self._said and success_of is not None:
            self._said[index] = success_of(place)
        return self._said.get(index)


def _as_json(label: Label | None) -> dict[str, Any] | None:
    return None if label is None else {"success": label.success, "moment": label.moment}


class LabelServer:
    """The page, on loopback only. Use as a context manager, or `run` until it is done.

    Args:
        labelling: what is shown and written.
        port: 0 takes a free one.

    Attributes:
        address: of the page, such as http://127.0.0.1:8500.

    Raises:
        InputError: the port is taken.
    """

    def __init__(self, labelling: Labelling, *, port: int = 0) -> None:
        handler = type("Handler", (_Handler,), {"labelling": labelling})
        try:
            self._server = _Server((HOST, port), handler)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"cannot listen on {HOST}:{port} ({getattr(error, 'strerror', None) or error}): "
                "pass another --port, or --port 0 for a free one"
            ) from error
        self.address = f"http://{HOST}:{self._server.server_address[1]}"

    def run(self) -> None:
        """Serve until the page says that it is done, or a signal raises."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._server.server_close()
            self._server.hang_up()

    def __enter__(self) -> LabelServer:
        self._thread = threading.Thread(target=self.run, name="label page", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a browser keeps its connections open

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that browsers keep open."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle of an answer is no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    labelling: Labelling
    protocol_version = "HTTP/1.1"
    timeout = 60.0  # seconds that a connection may be idle

    def do_GET(self) -> None:
        if not self._allowed():
            return
        path = urlsplit(self.path).path
        try:
            if path in PAGES:
                name, kind = PAGES[path]
                self._answer((ASSETS / name).read_bytes(), kind)
            elif path == "/state":
                self._answer(json.dumps(self.labelling.state()).encode(), "application/json")
            elif path.startswith("/film/") and _is_index(path[6:]):
                self._answer(self.labelling.film(int(path[6:])), "application/octet-stream")
            else:
                self._refuse(HTTPStatus.NOT_FOUND, "no such page")
        except InputError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))

    def do_POST(self) -> None:
        if not self._allowed():
            return
        length = self.headers.get("Content-Length", "")
        if not _is_index(length) or int(length) > LONGEST:
            self.close_connection = True
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "expected a short JSON body")
            return
        body = self.rfile.read(int(length))
        try:
            if self.path == "/label":
                given = Given.model_validate_json(body)
                said = given.label
                label = None if said is None else Label(said.success, said.moment)
                self.labelling.put(given.episode, label)
                self._answer(b"{}", "application/json")
            elif self.path == "/done":
                self.close_connection = True
                self._answer(b"{}", "application/json")
                threading.Thread(target=self.server.shutdown, daemon=True).start()
            else:
                self._refuse(HTTPStatus.NOT_FOUND, "no such page")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the body"
            self._refuse(HTTPStatus.BAD_REQUEST, f"{shown(where)}: {first['msg']}")
        except InputError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))

    def _allowed(self) -> bool:
        """Whether the page asks, and no other one that a browser on this machine shows.

        The host is what the browser was told: another name that leads here is a page's trick. What
        changes something has to be JSON, which a page may send to its own address only.
        """
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        name = urlsplit(f"//{host}").hostname if "/" not in host else None
        good = name in (HOST, "localhost", "::1") and origin in (None, f"http://{host}")
        if self.command == "POST":
            good = good and self.headers.get("Content-Type", "") == "application/json"
        if not good:
            self.close_connection = True
            self._refuse(HTTPStatus.FORBIDDEN, "this page answers to itself only")
        return good

    def _answer(self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._answer(why.encode(), "text/plain; charset=utf-8", status)

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def log_message(self, *args: object) -> None:
        pass


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 13
