"""Turns journals into episodes of the LeRobot folder, in a process of its own at low priority.

    python -m robots.recording.convert DIR

It reads the paths of journals from its input, a line each, and says what became of each in a line
of JSON: {"done": journal, "episode": i, "size": by how many bytes the folder grew}, with i None
where nothing was executed, or {"failed":
journal, "why": ...}. It ends with its input, so it goes on for a moment where a server was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from offline.errors import InputError
from robots.datasets.recorded import FOLDER
from robots.recording.assemble import assemble
from robots.recording.folder import RecordingFolder
from robots.recording.journal import read_journal

REFUSED = "refused"
"""The folder in which journals are kept that do not fit the recording."""


def convert(folder: RecordingFolder, journal: Path) -> dict[str, Any]:
    """Add one journal's episode, and remove the journal; what does not fit is put aside."""
    said: dict[str, Any] = {"done": str(journal), "episode": None}
    if not journal.is_file():
        return said
    before = folder.written
    try:
        episode = assemble(read_journal(journal), journal.stem)
        if episode is not None and episode.id not in folder.ids:
            said["episode"] = folder.add(episode, journal)
    except (InputError, KeyError, TypeError, ValueError) as error:
        aside = folder.path / FOLDER / REFUSED
        aside.mkdir(exist_ok=True)
        os.replace(journal, aside / journal.name)
        why = " ".join(f"{error}".split())[:400]
        return {"failed": str(journal), "why": f"{why} (kept in {aside / journal.name})"}
    said["size"] = folder.written - before - journal.stat().st_size
    journal.unlink()
    return said


def main() -> None:
    """The process."""
    with suppress(OSError):
        os.nice(10)  # below what serves, above training at 19
    path = Path(sys.argv[1])
    with open(path / FOLDER / ".converting", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of a server that was killed, another may still work
        folder = RecordingFolder(path)
        for line in sys.stdin:
            journal = Path(line.rstrip("\n"))
            try:
                said = convert(folder, journal)
            except OSError as error:  # a full disk: the journal stays
                folder = RecordingFolder(path)
                said = {"failed": str(journal), "why": error.strerror or str(error)}
            with suppress(BrokenPipeError):
                print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
