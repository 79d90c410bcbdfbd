"""Tells the processes of a run that one of them has ended, and which.

Every process keeps a connection to the first one, which the operating system closes when a process
ends, however it ends. So a dead process is told from a slow one: a reward may take hours, and may
keep Python busy meanwhile. A machine that is cut off is noticed by the system's keep-alive packets,
in half a minute. What ends one process ends all of them.

A process whose main thread waits for a lost one, where nothing can interrupt it, is ended from here
after `GRACE` seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import sys
import threading
from dataclasses import dataclass

from diffusion.errors import InputError, LostProcess

GRACE = 20.0  # seconds for the main thread to notice a loss; then once more to leave
CONNECTING = 60.0  # seconds to reach the first process
_QUIET, _EVERY, _TIMES = 10, 5, 4  # of keep-alive: seconds, seconds, packets


@dataclass(frozen=True)
class Address:
    """Where the first process listens, and what its own processes say first."""

    host: str
    port: int
    token: str


class Lifeline:
    """One process's end of the connections; use as `join` does.

    Args:
        index, count: of this process.
        speaker: whether this process prints of the loss of the first one.

    Attributes:
        lost: what to raise, once a process has ended.
    """

    def __init__(self, index: int, count: int, *, speaker: bool = False) -> None:
        self.index, self.count, self.speaker = index, count, speaker
        self.lost: LostProcess | None = None
        self._known, self._noticed, self._left = (threading.Event() for _ in range(3))
        self._peers: dict[int, socket.socket] = {}
        self._names: dict[int, str] = {}
        self._lock = threading.Lock()

    def listen(self, host: str) -> tuple[Address, socket.socket]:
        """In the first process: where the others are to connect, and what `accept` needs."""
        if socket.has_dualstack_ipv6():
            server = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            server = socket.create_server(("", 0))
        return Address(host, server.getsockname()[1], secrets.token_hex(16)), server

    def accept(self, address: Address, server: socket.socket) -> None:
        """In the first process: wait for the others.

        Raises:
            InputError: one does not come.
        """
        server.settimeout(CONNECTING)
        with server:
            while len(self._peers) < self.count - 1:
                try:
                    peer, _ = server.accept()
                    peer.settimeout(CONNECTING)
                    hello = json.loads(peer.makefile("rb").readline(1000))
                except TimeoutError:
                    missing = next(i for i in range(1, self.count) if i not in self._peers)
                    raise InputError(
                        f"process {missing} of {self.count} did not connect to the first one "
                        f"within {CONNECTING:.0f} s: may its machine open connections to this one?"
                    ) from None
                except (OSError, ValueError):
                    continue
                if not isinstance(hello, dict) or hello.get("token") != address.token:
                    peer.close()  # a stranger
                    continue
                self._peers[hello["index"]] = _kept_alive(peer)
                self._names[hello["index"]] = hello["name"]
        self._watch()

    def connect(self, address: Address) -> None:
        """In the others: connect to the first process. Raises InputError where that fails."""
        try:
            peer = socket.create_connection((address.host, address.port), CONNECTING)
            about = {"token": address.token, "index": self.index, "name": _name()}
            peer.sendall(json.dumps(about).encode() + b"\n")
        except OSError as error:
            raise InputError(
                f"process {self.index} cannot connect to the first one at {address.host}:"
                f"{address.port} ({error}): may its machine open connections there?"
            ) from None
        self._peers[0] = _kept_alive(peer)
        self._watch()

    def tell(self, line: str) -> None:
        """Tell the others that this process fails, and why."""
        for peer in list(self._peers.values()):
            _send(peer, {"failed": self.index, "line": line})

    def close(self) -> None:
        """End the connections; the others know that this process is not lost."""
        self._left.set()
        for peer in list(self._peers.values()):
            _send(peer, {"bye": True})
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_WR)

    def loss(self, seconds: float = 10.0) -> LostProcess | None:
        """What to raise, if a process has been lost or is so within `seconds`."""
        self._known.wait(seconds)
        if self.lost is not None:
            self._noticed.set()
        return self.lost

    # -- the thread that reads --------------------------------------------------------------------

    def _watch(self) -> None:
        threading.Thread(target=self._read, name="lifeline", daemon=True).start()

    def _read(self) -> None:
        open_ones = {peer: index for index, peer in self._peers.items()}
        said: dict[int, bytes] = dict.fromkeys(self._peers, b"")
        while open_ones:
            ready, _, _ = select.select(list(open_ones), [], [])
            for peer in ready:
                index = open_ones[peer]
                try:
                    came = peer.recv(65536)
                except OSError:
                    came = b""
                *lines, said[index] = (said[index] + came).split(b"\n")
                messages = [json.loads(line) for line in lines]
                if any("bye" in message for message in messages):
                    came = b"bye"
                    del open_ones[peer]
                for message in messages:
                    if "failed" in message:
                        self._lose(message["failed"], message["line"])
                if not came:
                    del open_ones[peer]
                    self._lose(index, self._ended(index))

    def _ended(self, index: int) -> str:
        name = f" ({self._names[index]})" if index in self._names else ""
        return (
            f"process {index} of {self.count}{name} has ended without a word, as one does that is "
            "killed or that the system ends for want of memory; its machine's log may know more"
        )

    def _lose(self, index: int, line: str) -> None:
        with self._lock:
            if self.lost is not None or self._left.is_set():
                return
            self.lost = LostProcess(line, speaks=self.index == 0 or (index == 0 and self.speaker))
        for other, peer in self._peers.items():
            if other != index:
                _send(peer, {"failed": index, "line": line})
        self._known.set()
        threading.Thread(target=self._end, name="lifeline's end", daemon=True).start()

    def _end(self) -> None:
        """End this process where its main thread does not."""
        if self._noticed.wait(GRACE):
            self._left.wait(GRACE)
        if self._left.is_set():
            return
        lost = self.lost
        if lost is not None and lost.speaks:
            print(f"error: {lost}; continue with --resume", file=sys.stderr, flush=True)
        os._exit(LostProcess.exit_code)


def _name() -> str:
    return f"{os.getpid()} on {socket.gethostname()}"


def _kept_alive(peer: socket.socket) -> socket.socket:
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    named = (("TCP_KEEPIDLE", _QUIET), ("TCP_KEEPINTVL", _EVERY), ("TCP_KEEPCNT", _TIMES))
    for name, value in named:
        if hasattr(socket, name):  # macOS lacks one
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peer


def _send(peer: socket.socket, message: dict) -> None:
    with contextlib.suppress(OSError):
        peer.sendall(json.dumps(message).encode() + b"\n")
