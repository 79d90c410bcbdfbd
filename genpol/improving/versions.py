"""What has been learnt so far, on the disk: one folder for each version, and which one is current.

    versions/0003/version.json   `Version`: what it learnt from, and whether it is finished
    versions/0003/value/, edit/  what is served
    versions/0003/*-run/, *.log  run folders and logs of its commands
    current -> versions/0003     what the server watches; replaced by one rename, so that a value
                                 and an edit are taken up together or not at all

A kill leaves a version that is not finished. It is gone on with where it can be, or begun again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from offline.documents import read_document
from offline.errors import InputError
from offline.files import disk_errors, sync_path, write_beside

CURRENT = "current"
_REMEDY = "Free some space, and run the same command again: it goes on"


@dataclass(frozen=True)
class Version:
    """One version, as version.json has it."""

    number: int
    """From 1 up. 0 is what was served before anything was learnt."""
    episodes: int
    """Recorded episodes with a label when it began to learn."""
    recorded: int
    """Recorded episodes, labelled or not, when it began to learn."""
    state: str = "learning"
    """"learning", "served" or "failed"."""
    seconds: float = 0.0
    """Of the clock, for learning."""
    cpu_seconds: float = 0.0
    """Of the processor, for learning."""
    why: str = ""
    """What its command said last where it failed."""
    tries: dict[str, int] = field(default_factory=dict)
    """How often each of its commands has been started."""


class Versions:
    """The versions in a folder.

    Args:
        folder: of the run; made if absent.

    Raises:
        InputError: it cannot be written, or a version.json is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "versions"
        self.current = folder / CURRENT
        with disk_errors(f"cannot make {self.folder}", _REMEDY):
            self.folder.mkdir(parents=True, exist_ok=True)

    def all(self) -> list[Version]:
        """In order; folders that a kill left without a version.json are left out."""
        found = sorted(self.folder.glob("[0-9]*/version.json"))
        return [read_document(path, Version) for path in found]

    def path(self, version: Version | int) -> Path:
        """A version's folder."""
        number = version if isinstance(version, int) else version.number
        return self.folder / f"{number:04d}"

    def begin(self, episodes: int, recorded: int) -> Version:
        """The next version. What a kill left in its place goes."""
        number = max((version.number for version in self.all()), default=0) + 1
        version = Version(number, episodes, recorded)
        with disk_errors(f"cannot write in {self.folder}", _REMEDY):
            shutil.rmtree(self.path(version), ignore_errors=True)
            self.path(version).mkdir()
        self.write(version)
        return version

    def again(self, version: Version, episodes: int, recorded: int) -> Version:
        """The same version from its beginning, with the episodes that there are by now."""
        fresh = Version(version.number, episodes, recorded)
        path = self.path(version)
        with disk_errors(f"cannot write in {self.folder}", _REMEDY):
            for entry in path.iterdir():
                if entry.name != "version.json":
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.write(fresh)
        return fresh

    def write(self, version: Version) -> None:
        """Replace its version.json."""
        path = self.path(version) / "version.json"
        with disk_errors(f"cannot write {path}", _REMEDY):
            write_beside(path, (json.dumps(asdict(version), indent=2) + "\n").encode())

    def publish(self, version: Version, parts: Iterable[tuple[str, str]]) -> Version:
        """Make it the current one, and remove what only learning needed.

        Args:
            version: has learnt.
            parts: such as ("value", "edit"): the folder value of the run edit-run.

        Raises:
            InputError: a part is missing, or the disk refuses.
        """
        path = self.path(version)
        with disk_errors(f"cannot write in {path}", _REMEDY):
            for part, run in parts:
                made = path / f"{run}-run" / part
                if made.is_dir() and not (path / part).exists():
                    os.replace(made, path / part)
                elif not (path / part).is_dir():
                    raise InputError(f"{made} is missing: was it removed while it was learnt?")
            served = replace(version, state="served")
            self.write(served)
            self.point(path)
            for folder in path.glob("*-run"):
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return served

    def point(self, folder: Path) -> None:
        """Make a folder the current one."""
        partial = self.current.with_name(f".{os.getpid()}.{self.current.name}")
        partial.unlink(missing_ok=True)
        partial.symlink_to(os.path.relpath(folder, self.current.parent), target_is_directory=True)
        os.replace(partial, self.current)
        sync_path(self.current.parent)

    def mend(self) -> None:
        """After a kill between the two: the newest version that is served is the current one."""
        served = [version for version in self.all() if version.state == "served"]
        if served:
            self.point(self.path(served[-1]))
