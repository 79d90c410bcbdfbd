"""Printing to a reader who may leave: `genpol ... | head` closes the pipe, a terminal may go."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_GONE = (errno.EPIPE, errno.EIO)  # a pipe without a reader, a terminal that was closed


class Unbroken:
    """A stream of text that nobody may be reading any more: what is printed then goes nowhere.

    The work whose progress is printed goes on. Everything else is the stream's own.

    Args:
        stream: such as `sys.stdout`.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            written: int = self._stream.write(text)
            return written
        except OSError as error:
            self._silence(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._silence(error)

    def _silence(self, error: OSError) -> None:
        if error.errno not in _GONE:
            raise error
        # For this process's later writes, its buffers, and the interpreter's own last flush.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def unbroken_streams() -> Iterator[None]:
    """Standard output and error outlive whoever reads them."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        stream if stream is None else Unbroken(stream)  # None: started without one
        for stream in before
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Unbroken):
                stream.flush()
        sys.stdout, sys.stderr = before
