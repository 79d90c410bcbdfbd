"""Files that are whole or absent: written beside and renamed, so a kill leaves the old one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from offline.errors import InputError


def write_beside(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: temporary sibling, fsync, rename. On failure the old file stays."""
    with beside(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A sibling to write; it is fsynced and replaces `path` at the end, on failure it goes."""
    temporary = sibling(path)
    try:
        yield temporary
        sync_path(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)


def write_together(files: Mapping[Path, bytes]) -> None:
    """Replace several files: all are on the disk before the first is renamed.

    What fails before that leaves every old file. A kill between two renames leaves the siblings
    that are not renamed yet, by which a reader can tell (see `offline.model_files`).
    """
    staged = {path: sibling(path) for path in files}
    try:
        for path, data in files.items():
            staged[path].write_bytes(data)
            sync_path(staged[path])
    except BaseException:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
        raise
    for path, temporary in staged.items():
        os.replace(temporary, path)
    for folder in {path.parent for path in files}:
        sync_path(folder)


def sibling(path: Path) -> Path:
    """The hidden name under which this process writes `path`; its suffix is the same."""
    return path.with_name(f".{os.getpid()}.{path.name}")


def siblings(path: Path) -> list[Path]:
    """What processes that were killed left of writing `path`."""
    return sorted(path.parent.glob(f".[0-9]*.{path.name}"))


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
        reason = error.strerror or " ".join(str(error).split())[:160]
        raise InputError(f"{doing}: {reason}. {remedy}") from error
