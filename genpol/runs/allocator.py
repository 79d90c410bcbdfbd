"""Where freed memory goes: small networks need it again at once, large ones in other sizes."""

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
    # 32 MB is the most that glibc accepts; larger blocks go on being mapped one by one.
    return _set(_MMAP_THRESHOLD, 32 << 20) and _set(_TRIM_THRESHOLD, megabytes << 20)


def give_back_freed_memory(kilobytes: int = 256) -> bool:
    """Give blocks of at least so many KiB back to the system as soon as they are freed.

    glibc comes to keep blocks of up to 32 MB. The activations of a large network are of many sizes
    below that, and new ones rarely fit where old ones lay: after two training passes of the shape
    of SD 1.5 at 512 pixels a process held half as much again as the passes take. To map every block
    anew costs about a tenth of their CPU time.

    Returns:
        Whether it took effect; False where the C library is not glibc.
    """
    return _set(_MMAP_THRESHOLD, kilobytes << 10)


def _set(what: int, size: int) -> bool:
    try:
        return bool(ctypes.CDLL(None).mallopt(what, size))
    except (OSError, AttributeError, TypeError):
        return False
