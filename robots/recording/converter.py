"""The process that converts journals, as the recorder sees it: started when needed, and again where
it died."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

TRIES = 3  # of converting a journal, where the process died each time
GIVE_UP = 60.0  # seconds for finished episodes to be converted at the end


class Converter:
    """Of one recording's folder; see `robots/recording/convert.py`.

    Args:
        path: the folder.
        hear: called with what the process says of each journal, from a thread.
    """

    def __init__(self, path: Path, hear: Callable[[dict[str, Any]], None]) -> None:
        self._path, self._hear = path, hear
        # Journals whose conversion is not confirmed, and how often it was asked for.
        self._unfinished: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None

    def convert(self, journal: str | None) -> None:
        """Have a journal converted, and those that a process before this one has left."""
        asked = [] if journal is None else [journal]
        if self._dead():
            with self._changed:
                asked += [each for each, times in self._unfinished.items() if times < TRIES]
            self._process = self._start()
        assert self._process is not None and self._process.stdin is not None
        with self._changed:
            self._unfinished.update(asked)
        with suppress(OSError):  # it has died; the next journal starts another
            self._process.stdin.write("".join(f"{each}\n" for each in asked))
            self._process.stdin.flush()

    def close(self, patience: float = GIVE_UP) -> int:
        """Wait for what is asked for, for so many seconds; returns how many journals are left."""
        end = time.monotonic() + patience
        if self._unfinished and self._dead():
            self.convert(None)
        with self._changed:
            self._changed.wait_for(lambda: not self._unfinished or self._dead(), patience)
            left = len(self._unfinished)
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()  # it ends once it has done what it was asked for
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0 if left else max(0.1, end - time.monotonic()))
        return left

    def _start(self) -> subprocess.Popen[str]:
        here = str(Path(__file__).parents[2])
        paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [sys.executable, "-m", "robots.recording.convert", str(self._path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is the server's; what has ended is still written
        )
        follow = threading.Thread(target=self._follow, args=[process], name="recorded", daemon=True)
        follow.start()
        return process

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with suppress(ValueError):
                    said = json.loads(line)
                    self._hear(said)
                    with self._changed:
                        self._unfinished.pop(said.get("done") or said.get("failed"), None)
                        self._changed.notify_all()
        process.wait()
        with self._changed:
            self._changed.notify_all()

    def _dead(self) -> bool:
        return self._process is None or self._process.poll() is not None
