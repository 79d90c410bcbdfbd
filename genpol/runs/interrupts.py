"""Ctrl-C, SIGTERM and a closed terminal: how a command stops, and the exit code it leaves with.

While a run has an `InterruptGuard`, the first signal stops it after the current step, with what it
has done saved (`Interrupted`), and the second stops it at once. Everywhere else in a command the
first one stops at once (`leaving_at_once`). The exit code is 128 + the signal's number, as shells
have it: 130 for Ctrl-C, 143 for SIGTERM, 129 for a closed terminal.

While a module is being imported, the process ends where it stands. A library's own code may be
running Python then that must not raise: PyTorch calls abort() when it does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

from genpol.runs.several import speaks


class StopAtOnce(KeyboardInterrupt):
    """A signal that is not waited for: the command leaves where it stands.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class Interrupted(Exception):
    """A signal stopped the work before its end, after a step; what was done is on the disk.

    Args:
        text: how far it came, and how it goes on.
        number: of the signal.
    """

    agreed = True  # of several processes of a run, all stop

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number, self.exit_code = number, 128 + number


class InterruptGuard:
    """Context manager: the first signal sets `stop`, the second raises `StopAtOnce`.

    A loop reads `guard.stop` where its state is consistent, saves and leaves. The handlers that
    were there before come back on exit. Outside the main thread, where Python allows no
    handlers, it does nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        """Whether another process of the run says that the signal was seen."""
        self.number: int | None = None
        """Of the signal that came, None before."""
        self._handlers = _Handlers(self._handle)

    @property
    def stop(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    def interrupted(self, text: str) -> Interrupted:
        """To be raised once what was done is saved."""
        return Interrupted(text, signal.SIGINT if self.number is None else self.number)

    def __enter__(self) -> InterruptGuard:
        self._handlers.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handlers.put_back()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stop:
            _stop(number, frame)
        self.number = number
        if self.quiet:
            return
        # os.write: a handler may interrupt print() itself, whose buffer is not re-entrant. The
        # terminal may be what has gone.
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after this step; once more stops at once\n")


@contextmanager
def leaving_at_once() -> Iterator[list[int]]:
    """Inside, a signal raises `StopAtOnce`, except under an `InterruptGuard`.

    Yields:
        The numbers of the signals that came, since libraries may swallow or replace what a
        handler raises.
    """
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        _stop(number, frame)

    handlers = _Handlers(handle)
    handlers.install()
    try:
        yield came
    finally:
        handlers.put_back()


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Stop at once, in the way that this frame bears."""
    if _imports(frame):
        _end(128 + number)
    raise StopAtOnce(number)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame or around it."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _end(code: int) -> NoReturn:
    """End the process with what it has printed and one line."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        sys.stdout.flush()
    if speaks():
        with contextlib.suppress(OSError):
            os.write(2, b"interrupted\n")
    os._exit(code)


class _Handlers:
    """One handler for every signal that asks to leave, and those that were there before."""

    def __init__(self, handle: Callable[[int, FrameType | None], None]) -> None:
        self._handle = handle
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _signals():
            self._previous[number] = signal.signal(number, self._handle)

    def put_back(self) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()


def _signals() -> list[int]:
    """SIGINT, SIGTERM, and SIGHUP where nobody (nohup, say) has it ignored."""
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        numbers.append(hangup)
    return numbers
