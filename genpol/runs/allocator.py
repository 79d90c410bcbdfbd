"""Keeps freed memory in the process, because the next update of a training loop needs it again."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory(megabytes: int = 512) -> bool:
    """Let the process keep so much freed memory instead of giving it back to the system.

    glibc gives large blocks back at once and has every page of them mapped and zeroed when they
    are asked for again: 100,000 page faults and an eighth of the CPU time of an environment step
    of `genpol bench expo`. The process holds up to `megabytes` more, no more than it once used.

    Returns:
        Whether it took effect; False where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # 32 MB is the most that glibc accepts; larger blocks go on being mapped one by one.
    return bool(mallopt(_MMAP_THRESHOLD, 32 << 20)) and bool(
        mallopt(_TRIM_THRESHOLD, megabytes << 20)
    )
