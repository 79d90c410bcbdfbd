"""Threads that wait sleep: said to the OpenMP library before PyTorch loads it.

The threads of PyTorch meet at the end of every parallel operation. By default, who comes first
spins until the last is there. On a machine that other programs use too, the last one may not even
be running, and the others burn a time slice of the processor. Sleeping costs microseconds.

The library (GNU's libgomp, or Intel's and LLVM's libomp) reads the environment once, when it is
loaded, so this has to come before the first `import torch`. Afterwards it is of no effect.

`offline/waiting.py` is the same file: neither package imports the other.
"""

from __future__ import annotations

import os
import sys

# Whoever has set one of these has chosen how threads wait.
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def wait_passively() -> None:
    """Ask for sleeping threads, unless the user has asked for something or PyTorch is loaded."""
    if "torch" not in sys.modules and not any(name in os.environ for name in SETTINGS):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
