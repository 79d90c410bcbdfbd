"""The program in which `processes.Child` runs one command of the kit.

    python -m genpol.improving.child MODULE ...     imports these modules, and waits
    {"program": "genpol", "words": ["serve", ...], "niceness": 0}
                                                    one line on its standard input: what to do

It ends when the process that started it ends, however that ends: its standard input is a pipe, of
which the operating system closes the other end. The first it does then is to ask itself to stop
(SIGTERM), so that a recording or a checkpoint is finished; after `GRACE` seconds it goes.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import threading
import time

GRACE = 15.0  # seconds to finish what was begun


def main(modules: list[str]) -> None:
    """Import, wait for the words, and do what they say in this process."""
    for module in modules:
        importlib.import_module(module)
    line = _line()
    if not line:  # whoever started this has gone, or needs it no more
        return
    job = json.loads(line)
    if job["niceness"]:
        os.nice(job["niceness"])
    threading.Thread(target=_end_with_parent, name="lifeline", daemon=True).start()
    sys.argv = [job["program"], *job["words"]]
    runpy.run_module(job["program"], run_name="__main__")


def _line() -> bytes:
    """The first line of the standard input; empty at its end. Nothing is read beyond it."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return b""
        line += byte
    return line


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
