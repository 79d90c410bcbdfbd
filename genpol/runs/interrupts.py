"""Handles Ctrl-C and SIGTERM: the first stops after the current step, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptGuard:
    """Context manager: the first SIGINT or SIGTERM sets `stop`, a second raises KeyboardInterrupt.

    A loop reads `guard.stop` where its state is consistent, saves and leaves. The handlers that
    were there before come back on exit. Outside the main thread, where Python allows no
    handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.stop = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True
        # os.write: a handler may interrupt print() itself, whose buffer is not re-entrant.
        os.write(2, b"\nstopping after this step; once more stops at once\n")
