"""Learns a version after every so many labelled episodes, in the background, and publishes it.

A version is learnt by one or several commands of the kit, one after the other, each in a process
of its own that stands back behind the server. What a kill stops is gone on with where no episode
has come since, and begun again with all episodes otherwise.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from genpol.improving.processes import Child, last_line
from genpol.improving.versions import Version, Versions
from genpol.runs.lock import FolderLock
from offline.errors import InputError, shown

TRIES = 5  # of one command, before its version is given up
_CANNOT = 2  # exit code for what a user can mend


@dataclass(frozen=True)
class Lesson:
    """One command that a version is learnt by."""

    part: str
    """Its run folder is PART-run."""
    command: str
    words: Sequence[str]
    """Its options but for --output and --resume."""
    gives: tuple[str, ...]
    """Folders of its run folder that are served, such as "value"."""


@dataclass(frozen=True)
class Counts:
    """How many episodes there are to learn from."""

    recorded: int
    labelled: int
    successes: int


class Learner:
    """One version at a time.

    Args:
        versions: where they are.
        lessons: the folder of a version -> its commands, in order.
        every: labelled episodes after which the next version is learnt.
        enough: whether there is something to learn from.
        niceness: of its processes.
        say: takes a line for the user.

    Attributes:
        version: what is being learnt; None in between.
    """

    def __init__(
        self,
        versions: Versions,
        lessons: Callable[[Path], Sequence[Lesson]],
        every: int,
        *,
        enough: Callable[[Counts], bool],
        niceness: int,
        say: Callable[[str], None],
    ) -> None:
        self._versions, self._lessons, self._every = versions, lessons, every
        self._enough, self._niceness, self._say = enough, niceness, say
        self._child: Child | None = None
        self._lesson: Lesson | None = None
        versions.mend()
        known = versions.all()
        self.last: Version | None = known[-1] if known else None
        self.version: Version | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that learns at present."""
        return None if self._child is None else self._child.pid

    def due(self, counts: Counts) -> bool:
        """Whether there is something to do."""
        if self.version is not None or (self.last is not None and self.last.state == "learning"):
            return True
        learnt = 0 if self.last is None else self.last.episodes
        return counts.labelled >= learnt + self._every and self._enough(counts)

    def tick(self, counts: Counts) -> bool:
        """Begin, go on, or publish; whether the versions on the disk have changed."""
        if self._child is None:
            if not self.due(counts) or self._busy():
                return False
            if self.version is None:
                self._begin(counts)
            return self._next(counts)
        before = _cpu()
        if (code := self._child.code) is None:
            return False
        assert self.version is not None
        child, self._child = self._child, None
        spent = replace(
            self.version,
            seconds=self.version.seconds + child.seconds,
            cpu_seconds=self.version.cpu_seconds + _cpu() - before,
        )
        self._set(spent)
        child.stop()
        if code != 0:
            return self._stumble(code, counts)
        return self._next(counts)

    def stop(self) -> None:
        """Stop what is learnt at present; it is gone on with later."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _busy(self) -> bool:
        """Whether a process of a conductor that was killed is still about to end."""
        if self.last is None or self.last.state != "learning":
            return False
        for run in self._versions.path(self.last).glob("*-run"):
            try:
                FolderLock(run).release()
            except InputError:
                return True
        return False

    def _begin(self, counts: Counts) -> None:
        if self.last is None or self.last.state != "learning":
            self._set(self._versions.begin(counts.labelled, counts.recorded))
        elif self.last.recorded != counts.recorded:
            self._set(self._versions.again(self.last, counts.labelled, counts.recorded))
        else:
            self._set(self.last)
        assert self.version is not None
        self._say(f"learning version {self.version.number} from {self.version.episodes} episodes")

    def _next(self, counts: Counts) -> bool:
        """Start the first command that has not ended, or publish."""
        assert self.version is not None
        path = self._versions.path(self.version)
        lessons = self._lessons(path)
        for lesson in lessons:
            run = path / f"{lesson.part}-run"
            if (run / "summary.json").is_file() or all((path / g).is_dir() for g in lesson.gives):
                continue
            tries = self.version.tries.get(lesson.part, 0) + 1
            if tries > TRIES:
                return self._give_up(f"{lesson.command} was ended {TRIES} times", path, lesson)
            self._set(replace(self.version, tries={**self.version.tries, lesson.part: tries}))
            self._lesson = lesson
            goes_on = tries > 1 and any(run.glob("checkpoints/step-*"))
            where = ("--resume", str(run)) if goes_on else (*lesson.words, "--output", str(run))
            if not goes_on:
                shutil.rmtree(run, ignore_errors=True)
            self._child = Child(
                (lesson.command, *where), path / f"{lesson.part}.log", niceness=self._niceness
            )
            return False
        gives = [(part, lesson.part) for lesson in lessons for part in lesson.gives]
        done = self._versions.publish(self.version, gives)
        self._say(
            f"version {done.number} is ready, learnt from {done.episodes} episodes in "
            f"{done.seconds:.0f} seconds"
        )
        self.version, self.last = None, done
        return True

    def _stumble(self, code: int, counts: Counts) -> bool:
        """A command ended before its end: killed, or it cannot."""
        assert self.version is not None and self._lesson is not None
        path = self._versions.path(self.version)
        killed = code < 0 or code > 128
        fresh = self.version.tries.get(self._lesson.part, 0) == 1
        if not killed and (fresh or code != _CANNOT):
            return self._give_up(last_line(path / f"{self._lesson.part}.log"), path, self._lesson)
        if not killed or self.version.recorded != counts.recorded:
            # What it learnt from has changed since, or its checkpoint cannot be read.
            tries = self.version.tries
            again = self._versions.again(self.version, counts.labelled, counts.recorded)
            self._set(replace(again, tries=tries))
        return self._next(counts)

    def _give_up(self, why: str, path: Path, lesson: Lesson) -> bool:
        assert self.version is not None
        failed = replace(self.version, state="failed", why=why)
        self._versions.write(failed)
        self._say(
            f"version {failed.number} could not be learnt, the one before goes on: "
            f"{shown(why, 300)} [{path / f'{lesson.part}.log'}]"
        )
        self.version, self.last = None, failed
        return True

    def _set(self, version: Version) -> None:
        self._versions.write(version)
        self.version = self.last = version


def _cpu() -> float:
    """Seconds of the processor that this process's ended children have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
