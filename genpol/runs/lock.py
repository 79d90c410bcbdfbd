"""A folder belongs to one process at a time: a lock that the operating system keeps.

The lock is `flock` on the file `.lock` in the folder. The system lets go of it when its process
ends, however that happens, SIGKILL included. What the file says, who holds the lock and since when,
is for messages alone. A file that a killed process left, or that came along when a folder was
copied, locks nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import socket
import sys
import time
import weakref
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from offline.errors import InputError
from offline.files import disk_errors

NAME = ".lock"
# What a file system says that has no such locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_PATIENCE = 0.3  # seconds for an owner to write who it is, once it has the lock


class FolderLock:
    """Held from construction until `release`, the end of a `with` statement, or of the process.

    Args:
        folder: there already.
        remedy: what one can do besides waiting.
        name: of the file.

    Raises:
        InputError: another process, or another run of this one, holds it; says which. Or the
            folder cannot be written in.
    """

    def __init__(
        self, folder: Path, remedy: str = "pass another --output", *, name: str = NAME
    ) -> None:
        path = folder / name
        with disk_errors(f"cannot write in {folder}", "Pass another --output"):
            descriptor = _locked(path)
            if descriptor is None:
                raise InputError(f"{folder} is in use by {_owner(path)}: wait for it, or {remedy}")
        _ours.add(descriptor)
        self._release = weakref.finalize(self, _let_go, path, descriptor, os.getpid())
        with contextlib.suppress(OSError):  # the lock holds on a full disk, too
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_this_process()).encode(), 0)

    def release(self) -> None:
        """Let go; once more does nothing."""
        self._release()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _locked(path: Path) -> int | None:
    """An open file that is locked; None if another has it."""
    while True:
        # Closed in programs that this process starts, as Python's descriptors are.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(descriptor, path):
                os.close(descriptor)
                return None
            # Whoever had it may have removed the file between the two calls.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    """Whether the lock is ours; without locks, it is, and a warning says so."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        print(
            f"warning: {path.parent} is on a file system without locks, so nothing keeps a second "
            "process out of it",
            file=sys.stderr,
        )
    return True


def _let_go(path: Path, descriptor: int, pid: int) -> None:
    if os.getpid() != pid:
        return  # a child made by fork: the lock is its parent's
    _ours.discard(descriptor)
    with contextlib.suppress(OSError):
        path.unlink()  # before the lock goes: a file of that name made afterwards is another's
    os.close(descriptor)


_ours: set[int] = set()


def _close_in_child() -> None:
    """A process made by fork alone shares its parent's lock, and would keep it beyond its death."""
    for descriptor in _ours:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _ours.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
    }


def _owner(path: Path) -> str:
    """Who holds the lock, in words."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        with contextlib.suppress(Exception):  # whatever the file holds, it is for words alone
            with open(path, encoding="utf-8") as file:
                owner = json.loads(file.read(4096))
            pid, host = int(owner["pid"]), str(owner["host"])[:80]
            # What a dead process left is not yet replaced by the one that has the lock now.
            if host != socket.gethostname() or _alive(pid):
                command, since = str(owner["command"])[:200], str(owner["since"])[:40]
                return f"process {pid} on {host} since {since} (`{command}`)"
        if time.monotonic() > deadline:
            return "another process"
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True
