"""The processes of `genpol bench beside`: those that are timed, and those that disturb them.

All are children that hold one end of a pipe. Whatever ends this process closes the other end, even
a SIGKILL, and they end too. What ends the measurement alone (an error, Ctrl-C) ends them as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from offline.errors import InputError
from offline.waiting import SETTINGS

ROOT = Path(__file__).parents[2]
OURS = "from genpol.benchmarks.beside_work import main; main(own_threads=True)"
USUAL = (  # PyTorch before genpol, which then leaves alone how threads wait
    "import torch; from genpol.benchmarks.beside_work import main; main(own_threads=False)"
)
BUSY = """
import os, select, threading, torch
threading.Thread(
    target=lambda: (os.read(int(os.environ["LIFELINE"]), 1), os._exit(1)), daemon=True
).start()
torch.set_num_threads(int(os.environ["BUSY_THREADS"]))
a, busy = torch.randn(512, 512), False
a @ a
os.write(1, b"ready\\n")
while True:
    if select.select([0], [], [], 0 if busy else None)[0]:
        word = os.read(0, 1)
        if not word:
            break
        busy = word == b"+"
    if busy:
        a @ a
"""


class Child:
    """Context: an interpreter that runs `source` and is ended with the context.

    Args:
        source: reads its standard input, and leaves where that ends.
        settings: of its environment, beside this process's.
        plain: without what the user, or genpol, has said about threads.
    """

    def __init__(
        self, source: str, settings: Mapping[str, str] | None = None, *, plain: bool = False
    ) -> None:
        environment = dict(os.environ) | dict(settings or {})
        paths = [str(ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        if plain:
            for name in (*SETTINGS, "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
                environment.pop(name, None)
        self._errors = tempfile.TemporaryFile("w+")
        theirs, self._lifeline = os.pipe()
        environment["LIFELINE"] = str(theirs)
        # A session of its own, as programs of other terminals and services have: Ctrl-C is for us.
        self._process = subprocess.Popen(
            [sys.executable, "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
            bufsize=1,
            start_new_session=True,
            pass_fds=(theirs,),
        )
        os.close(theirs)

    def tell(self, text: str) -> None:
        """Write to its standard input."""
        assert self._process.stdin
        try:
            self._process.stdin.write(text)
            self._process.stdin.flush()
        except OSError:
            raise self._failure() from None

    def answer(self) -> str:
        """Its next line.

        Raises:
            InputError: it has ended.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        return line

    def _failure(self) -> InputError:
        code = self._process.wait()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["it printed nothing"])[-1]
        return InputError(f"a process of the benchmark ended with code {code}: {last[:200]}")

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = self._process
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(self._lifeline)
        for pipe in (process.stdin, process.stdout, self._errors):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was left to write is lost on a process that has gone
                    pass


def busy(threads: int) -> Child:
    """A program that multiplies in so many threads between "+" and "-", as PyTorch comes."""
    return Child(BUSY, {"BUSY_THREADS": str(threads)}, plain=True)


def worker(settings: Mapping[str, Any], *, usual: bool = False) -> tuple[Child, dict[str, int]]:
    """A process that works, ready to be asked, and the threads it takes for each work.

    Args:
        settings: see `genpol.benchmarks.beside_work.main`.
        usual: PyTorch's own number of threads, which spin while they wait.
    """
    child = Child(USUAL if usual else OURS, plain=usual)
    try:
        child.tell(json.dumps(settings) + "\n")
        return child, json.loads(child.answer())["threads"]
    except BaseException as error:
        child.__exit__(type(error), error, None)
        raise


def ask(child: Child, work: str, times: int, every: float = 0.0) -> dict[str, Any]:
    """{"wall": [seconds], "cpu": seconds per call} of a worker's work."""
    child.tell(json.dumps({"work": work, "times": times, "every": every}) + "\n")
    return json.loads(child.answer())
