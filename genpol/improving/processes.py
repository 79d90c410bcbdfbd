"""A command of the kit in a process of its own, which ends with this one, however this one ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

PROGRAM = "genpol"  # the module whose commands they are
PATIENCE = 30.0  # seconds for a process that was asked to stop
_TAIL = 8192  # bytes of a log in which its last line is looked for


class Child:
    """One process; it is started at once, and waits for its words if there are none yet.

    Args:
        words: behind `genpol`, such as ("serve", "--port", "8000"). None: see `begin`.
        log: file that what it prints is appended to.
        niceness: 0 to 19; the higher, the more it stands back behind other processes.
        modules: what it imports before it begins, so that it begins sooner.
    """

    def __init__(
        self,
        words: Sequence[str] | None,
        log: Path,
        *,
        niceness: int = 0,
        modules: Sequence[str] = (),
    ) -> None:
        self.log, self._niceness = log, niceness
        self.started = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "genpol.improving.child", *modules],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C is this process's to pass on
            )
        self.pid = self._process.pid
        if words is not None:
            self.begin(words)

    def begin(self, words: Sequence[str]) -> None:
        """Say what to do, once. A process that has died meanwhile is noticed by `code`."""
        self.started = time.monotonic()
        job = {"program": PROGRAM, "words": list(words), "niceness": self._niceness}
        with contextlib.suppress(OSError):
            self._pipe.write(json.dumps(job).encode() + b"\n")
            self._pipe.flush()

    @property
    def code(self) -> int | None:
        """None while it runs; then its exit code, or minus the signal's number that killed it."""
        return self._process.poll()

    @property
    def seconds(self) -> float:
        """Since it was told what to do."""
        return time.monotonic() - self.started

    def last_line(self) -> str:
        """What it printed last."""
        return last_line(self.log)

    def ask_to_stop(self) -> None:
        """SIGTERM, as Ctrl-C does."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def stop(self, patience: float = PATIENCE) -> int:
        """Ask it to stop, and wait; kill it if it does not. Returns its exit code."""
        self.ask_to_stop()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
        code = self._process.wait()
        with contextlib.suppress(OSError):
            self._pipe.close()
        return code

    @property
    def _pipe(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin


def last_line(log: Path) -> str:
    """The last line of a log that is not empty; "" without one."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    return next((line for line in reversed(lines) if line), "")
