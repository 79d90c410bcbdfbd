"""Files that are whole or absent: written beside and renamed, so a kill leaves the old one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion.errors import InputError


def write_beside(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: temporary sibling, fsync, rename. On failure the old file stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def sync_path(path: Path) -> None:
    """fsync a file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(doing: str, remedy: str) -> Iterator[None]:
    """Turn the operating system's refusal (disk full, read-only, not permitted) into one line.

    Raises:
        InputError: "<doing>: No space left on device. <remedy>", from an OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{doing}: {error.strerror or error}. {remedy}") from error
