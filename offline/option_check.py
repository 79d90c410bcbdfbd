"""`require`: raises a one-line error for a setting that is out of its range."""

from __future__ import annotations

from offline.errors import InputError


def require(config: object, name: str, good: bool, expected: str) -> None:
    """Check one option.

    Raises:
        InputError: not `good`; names the option as it is written on the command line, what was
            expected, and what came.
    """
    if not good:
        flag = f"--{name.replace('_', '-')}"
        raise InputError(f"{flag} must be {expected}, received {getattr(config, name)}")
