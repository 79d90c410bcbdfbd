"""A server that is there whenever a robot asks: one that dies is replaced by one that waits warm.

Most of a server's start is the import of its libraries, seconds of it. So a second process has
imported them already, and waits. It takes over the port within a fraction of a second.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from genpol.improving.processes import Child
from offline.errors import InputError, shown

FIRST_TRIES = 3  # before a server that has never answered is given up
_SLOWEST = 2.0  # seconds between two starts, at most
_PROBE = 1.0  # seconds for an answer to whether it is there


class KeptServer:
    """One command that listens on a port, kept alive.

    Args:
        words: behind `genpol`.
        host, port: where it listens.
        log: of what it prints.
        modules: what the next one imports beforehand.
        say: takes a line for the user.

    Attributes:
        restarts: how often one has died and another has been started.
        ready: whether the present one has answered.
    """

    def __init__(
        self,
        words: Sequence[str],
        host: str,
        port: int,
        log: Path,
        *,
        modules: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        self._words, self._log, self._modules, self._say = list(words), log, modules, say
        self._host, self._port = reachable(host), port
        self._now: Child | None = None
        self._next: Child | None = None
        self._failed = 0  # starts in a row that came to nothing
        self._not_before = 0.0
        self._told: set[str] = set()
        self.restarts, self.ready, self.was_ready = 0, False, False

    @property
    def pid(self) -> int | None:
        """Of the process that serves at present."""
        return None if self._now is None else self._now.pid

    def tick(self) -> None:
        """Start it, notice that it is there, or replace it; call this several times a second.

        Raises:
            InputError: it has never answered, and ended several times; with what it said last.
        """
        if self._now is not None and self._now.code is not None:
            self._bury(self._now)
        if self._now is None:
            if time.monotonic() >= self._not_before and self._free():
                self._start()
        elif not self.ready:
            self.ready = answers(self._host, self._port)
            if self.ready:
                self._failed, self.was_ready = 0, True
                self._told.clear()
        elif self._next is None or self._next.code is not None:
            self._next = Child(None, self._log, modules=self._modules)

    def stop(self) -> None:
        """Ask both to end, and wait for them."""
        for child in (self._next, self._now):
            if child is not None:
                child.stop()
        self._now = self._next = None
        self.ready = False

    def _start(self) -> None:
        if self._next is not None and self._next.code is None:
            self._now, self._next = self._next, None
            self._now.begin(self._words)
        else:
            self._now = Child(self._words, self._log)

    def _bury(self, child: Child) -> None:
        code, said = child.code, child.last_line()
        child.stop()
        if self.ready:
            self.restarts += 1
        self._now, self.ready = None, False
        self._failed += 1
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        if not self.was_ready and self._failed >= FIRST_TRIES:
            raise InputError(
                f"the server ended {self._failed} times before it answered ({how}): "
                f"{shown(said, 300)} [{self._log}]"
            )
        self._not_before = time.monotonic() + min(_SLOWEST, 0.1 * 2 ** (self._failed - 1) - 0.1)
        line = f"the server ended ({how}); it is started again"
        if code is None or code >= 0:
            line += f": {shown(said, 300)}"
        if line not in self._told:
            self._told.add(line)
            self._say(line)

    def _free(self) -> bool:
        """Whether nobody listens on the port; one that is about to end may for a moment."""
        with socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, self._port))
            except OSError as error:
                line = (
                    f"cannot listen on {self._host}:{self._port} ({error.strerror}): waiting for "
                    "whoever does to end; another --port does not wait"
                )
                if line not in self._told:
                    self._told.add(line)
                    self._say(line)
                self._not_before = time.monotonic() + 0.1
                return False
        return True


def reachable(host: str) -> str:
    """Where this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


def free_port(host: str) -> int:
    """A port on which nobody listens at present.

    Raises:
        InputError: the host is none of this machine's.
    """
    place = reachable(host)
    try:
        with socket.socket(socket.AF_INET6 if ":" in place else socket.AF_INET) as probe:
            probe.bind((place, 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise InputError(f"cannot listen on {shown(host)} ({error}): pass another --host") from None


def answers(host: str, port: int) -> bool:
    """Whether a policy server is there."""
    connection = http.client.HTTPConnection(host, port, timeout=_PROBE)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
