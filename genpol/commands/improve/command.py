"""`genpol improve`: serves, records, learns in the background and swaps, until it is stopped.

This process only conducts. The server and what learns are commands of the kit in processes of their
own, so that none of them takes another with it. All that is known is on the disk: the recording
says how many episodes there are, and the folder of versions what has been learnt from them.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from genpol.commands.improve.options import Improve, check, recording_of

TICK = 0.1  # seconds between two looks at the processes
LOOK = 1.0  # seconds between two looks at the recording
STATE = "state.json"


def run(config: Improve) -> None:
    """Improve until Ctrl-C, or until --episodes have been recorded and learnt from.

    Raises:
        InputError: for what a user can mend.
        Interrupted: a signal stopped it; the same command goes on.
    """
    from genpol.runs.interrupts import InterruptGuard
    from genpol.runs.lock import FolderLock
    from offline.files import disk_errors

    check(config)
    output = config.output
    with disk_errors(f"cannot make {output}", "Pass another --output"):
        output.mkdir(parents=True, exist_ok=True)
    with FolderLock(output), InterruptGuard() as guard:
        conductor = Conductor(config)
        try:
            while not guard.stop and not conductor.finished:
                conductor.tick()
                time.sleep(TICK)
        finally:
            conductor.stop()
        if not conductor.finished:
            raise guard.interrupted(f"{conductor.summary()}; to continue: {command_line(config)}")
    print(conductor.summary())


class Conductor:
    """One sitting; `run` calls `tick` several times a second.

    Args:
        config: the options.

    Raises:
        InputError: a folder is of another kind, or a document in it is damaged.
    """

    def __init__(self, config: Improve) -> None:
        from genpol.commands.improve.words import MODULES, first_served, lessons, serve_words
        from genpol.improving.kept_server import KeptServer, free_port
        from genpol.improving.learner import Learner
        from genpol.improving.seen import Seen
        from genpol.improving.versions import Versions
        from offline.errors import InputError

        self.config, self.output = config, config.output
        before = _state(self.output)
        port = config.port or int(before.get("port", 0)) or free_port(config.host)
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.address = f"ws://{host}:{port}"
        self.versions = Versions(self.output)
        if (first := first_served(config)) is not None and not self.versions.current.exists():
            if not first.is_dir():
                raise InputError(f"--value {config.value} is no folder of `genpol value`")
            self.versions.point(first)
        self.server = KeptServer(
            serve_words(config, port), config.host, port, self.output / "serve.log",
            modules=MODULES, say=self._say,
        )  # fmt: skip
        self.learner = Learner(
            self.versions, lambda folder: lessons(config, self._chunk()), config.every,
            enough=lambda counts: counts.successes > 0 or bool(config.data),
            niceness=config.niceness, say=self._say,
        )  # fmt: skip
        self.port, self.finished = port, False
        self.seen: list[Seen] = []
        self._scan: Any = None
        self._shown: Any = None
        self._next_look = 0.0
        self._announced = False
        self._write_config()

    def tick(self) -> None:
        """Look at the server, then at the recording and at what is learnt."""
        from genpol.improving.seen import counts_of

        self.server.tick()
        if self.server.ready and not self._announced:
            self._announced = True
            self._say(f"serving on {self.address}")
        if not self.server.was_ready or time.monotonic() < self._next_look:
            return
        if self._scan is None:  # heavy to import: the robot is answered first
            from genpol.commands.improve.scan import Scan

            self._scan = Scan(recording_of(self.config))
        self.seen = self._scan()
        counts = counts_of(self.seen)
        self.learner.tick(counts)
        enough = self.config.episodes is not None and counts.labelled >= self.config.episodes
        self.finished = enough and not self.learner.due(counts)
        self._show(counts)
        self._next_look = time.monotonic() + LOOK

    def stop(self) -> None:
        """Stop all processes; what they were at is gone on with later."""
        self.learner.stop()
        self.server.stop()
        if self._scan is not None:
            from genpol.improving.seen import counts_of

            self.seen = self._scan()
            self._show(counts_of(self.seen), stopped=True)

    def summary(self) -> str:
        """How far it has come."""
        from genpol.improving.seen import counts_of

        counts = counts_of(self.seen)
        learnt = sum(version.state == "served" for version in self.versions.all())
        return (
            f"{counts.recorded} episodes recorded, {counts.successes} successes of "
            f"{counts.labelled} with a label, {learnt} versions learnt in {self.output}"
        )

    def _chunk(self) -> int:
        return self.config.action_chunk or self._scan.executed or 1

    def _show(self, counts: Any, *, stopped: bool = False) -> None:
        """Write state.json and the page, where anything has changed."""
        from genpol.improving.report import report
        from offline.files import disk_errors, write_beside

        versions = self.versions.all()
        learning = self.learner.version
        state = {
            "address": self.address,
            "port": self.port,
            "recorded": counts.recorded,
            "labelled": counts.labelled,
            "successes": counts.successes,
            "served": max((v.number for v in versions if v.state == "served"), default=0),
            "learning": None if learning is None else learning.number,
            "due": self.learner.due(counts),
            "server_restarts": self.server.restarts,
            "pids": {"conductor": os.getpid(), "server": self.server.pid,
                     "learner": self.learner.pid},
            "stopped": stopped,
        }  # fmt: skip
        if (shown := (state, self.seen, versions)) == self._shown:
            return
        now = "It is stopped." if stopped else "It waits for episodes."
        if not stopped and learning is not None:
            now = f"It learns version {learning.number} from {learning.episodes} episodes."
        page = report(
            self.seen, versions, now=now, address=self.address, restarts=self.server.restarts,
            command=command_line(self.config),
        )  # fmt: skip
        with disk_errors(f"cannot write in {self.output}", "Free some space: it goes on then"):
            write_beside(self.output / "index.html", page.encode())
            write_beside(self.output / STATE, (json.dumps(state, indent=2) + "\n").encode())
        self._shown = shown

    def _write_config(self) -> None:
        """config.json: the options of the latest sitting."""
        from offline.files import disk_errors, write_beside

        options = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.config).items()}
        text = json.dumps({"command": "improve", **options}, indent=2) + "\n"
        with disk_errors(f"cannot write in {self.output}", "Pass another --output"):
            write_beside(self.output / "config.json", text.encode())

    def _say(self, line: str) -> None:
        print(line, flush=True)


def command_line(config: Improve) -> str:
    """The command with these options, as it can be typed again."""
    words = ["genpol", "improve"]
    usual = Improve()
    for name, given in asdict(config).items():
        if given == getattr(usual, name):
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(given, tuple):
            words += [flag, *map(str, given)]
        elif given is True:
            words.append(flag)
        else:  # a text may begin with a dash
            words += [f"{flag}={given}"] if str(given).startswith("-") else [flag, str(given)]
    return shlex.join(words)


def _state(output: Path) -> dict[str, Any]:
    """state.json of an earlier sitting; empty without one that can be read."""
    from offline.documents import read_json
    from offline.errors import InputError

    try:
        found = read_json(output / STATE)
    except InputError:
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("port", 0), int) else {}
