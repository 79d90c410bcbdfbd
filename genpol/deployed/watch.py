"""`Watch`: takes up newer values and edits while robots are served.

A thread looks at the run folder every now and then. What is new there is loaded and judged beside
what is served (`genpol.deployed.judging`), and is served from the next episode on unless it is
worse. Robots wait for nothing: a session asks for the present version when an episode begins.

    DIR/versions.csv    a row for each version that was looked at: served or refused, and why
"""

from __future__ import annotations

import csv
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from genpol.deployed.choice import Choice, load_choice, mark_of
from genpol.deployed.judging import Verdict
from offline.errors import InputError, shown
from offline.threads import use_threads

LOG = "versions.csv"
HEADER = ("time", "version", "served", "auc", "auc_before", "error", "episodes", "reason")
V = TypeVar("V")


@dataclass(frozen=True)
class Served(Generic[V]):
    """A version, and what was made of it."""

    name: str
    choice: Choice
    made: V


class Watch(Generic[V]):
    """See the top of the file.

    Args:
        folder: of a run; it need not be there yet.
        first: what is served until something is there.
        make: (choice, its name) -> what sessions need; raises InputError for one that cannot be
            served here, such as a value of other actions.
        judge: (newer, present) -> what held-out episodes say; None takes everything up.
        every: seconds between two looks.
        log: folder of versions.csv; versions that stand there keep their numbers.
        say: told of each version that was looked at, in one line.
        device: where values compute.
        threads: of PyTorch, in the thread that judges.
    """

    def __init__(
        self,
        folder: str | Path,
        first: Choice,
        make: Callable[[Choice, str], V],
        *,
        judge: Callable[[Choice, Choice], Verdict] | None = None,
        every: float = 2.0,
        log: Path | None = None,
        say: Callable[[str], None] = print,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        self.folder, self._make, self._judge = Path(folder), make, judge
        self._every, self._say, self._device, self._threads = every, say, device, threads
        self._log = None if log is None else log / LOG
        self._numbers = {} if self._log is None else read_numbers(self._log)
        self._seen: str | None = None  # what stood there at the last look
        self._settled: set[str] = set()  # what was refused
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.present = Served("0", first, make(first, "0"))
        """What an episode that begins now is served by."""
        if first.value is None and mark_of(self.folder) is not None:
            self._take(load_choice(self.folder, device=device), None)

    def newest(self) -> V:
        """Of what an episode that begins now is served by."""
        return self.present.made

    # -- in the thread

    def start(self) -> None:
        """Look from now on, in a thread."""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)

    @property
    def closed(self) -> bool:
        """Whether nobody looks any more."""
        return self._stop.is_set()

    def _run(self) -> None:
        use_threads(self._threads)
        with suppress(OSError, AttributeError):  # on Linux a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while not self._stop.wait(self._every):
            try:
                self.look()
            except InputError as error:
                self._say(f"{self.folder}: {error}")
            except Exception as error:  # whatever it is, what is served goes on being served
                self._say(f"{self.folder}: {type(error).__name__}: {shown(error, 200)}")

    def look(self) -> bool:
        """Look once; whether a newer version was taken up.

        What has just changed waits for the next look: its run may be writing the rest of it.

        Raises:
            InputError: what is there cannot be served. It is not looked at again.
        """
        mark = mark_of(self.folder)
        before, self._seen = self._seen, mark
        if mark is None or mark != before or mark == self.present.choice.mark:
            return False
        if mark in self._settled:
            return False
        try:
            choice = load_choice(self.folder, device=self._device)
            if mark_of(self.folder) != mark:  # replaced meanwhile
                return False
            verdict = None
            if self._judge is not None and self.present.choice.value is not None:
                verdict = self._judge(choice, self.present.choice)
            if verdict is not None and verdict.worse:
                self._settled.add(mark)
                self._write(self._name(mark), verdict, served=False)
                self._say(f"kept version {self.present.name}: the newer one is worse, {verdict}")
                return False
            self._take(choice, verdict)
        except InputError:
            self._settled.add(mark)
            raise
        return True

    def _take(self, choice: Choice, verdict: Verdict | None) -> None:
        name = self._name(choice.mark)
        self.present = Served(name, choice, self._make(choice, name))
        self._write(name, verdict, served=True)
        self._say(f"version {name}" + ("" if verdict is None else f": {verdict}"))

    def _name(self, mark: str) -> str:
        short = mark[:8]
        if short not in self._numbers:
            self._numbers[short] = max(self._numbers.values(), default=0) + 1
        return f"{self._numbers[short]}-{short}"

    def _write(self, name: str, verdict: Verdict | None, *, served: bool) -> None:
        if self._log is None:
            return
        said = verdict or Verdict(0)
        row = [f"{time.time():.3f}", name, int(served)]
        row += [f"{n:.4f}" if n == n else "" for n in (said.newer, said.present, said.error)]
        row += [said.episodes, "" if served else "worse"]
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            fresh = not self._log.exists()
            with open(self._log, "a", newline="") as file:
                out = csv.writer(file, lineterminator="\n")
                if fresh:
                    out.writerow(HEADER)
                out.writerow(row)
        except OSError as error:
            self._say(f"cannot write {self._log}: {error.strerror}")


def read_numbers(path: Path) -> dict[str, int]:
    """The numbers that versions were given before, by the beginnings of their hashes."""
    numbers: dict[str, int] = {}
    with suppress(OSError, ValueError), open(path, newline="") as file:
        for row in csv.DictReader(file):
            number, _, mark = str(row.get("version")).partition("-")
            if number.isascii() and number.isdigit() and mark:
                numbers[mark] = int(number)
    return numbers
