"""Errors a user can act on: one line each, shown without a traceback, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Input that cannot be used. The message is one line: expected, received, cause, remedy.

    `exit_code` is what the command line leaves with; it recognises such errors by this attribute,
    so that packages which never import each other can each have their own.
    """

    exit_code = 2


class Diverged(InputError):
    """Fine-tuning that has become NaN or infinite; says what, when, and what to try."""


class RewardError(InputError):
    """A reward that raised, or returned NaN or the wrong shape; names the offending prompt."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion such as ' Did you mean "attributes"?', or the list of what there is."""
    known = list(known)
    close = difflib.get_close_matches(name[:100], [one[:100] for one in known[:1000]], cutoff=0.5)
    return f' Did you mean "{cut(close[0])}"?' if close else f" Known: {listed(known)}."


def listed(names: Iterable[str]) -> str:
    """Names for a message: at most twenty, and at most about 300 characters of them."""
    names = list(names)
    text = ", ".join(cut(name) for name in names[:20])
    text = text if len(text) <= 300 else text[:297] + "..."
    return f"{text} and {len(names) - 20} more" if len(names) > 20 else text


def cut(text: object, most: int = 80) -> str:
    """What was received, for a message: one line of at most `most` printable characters."""
    words = " ".join(str(text)[: 4 * most].split())
    words = "".join(letter if letter.isprintable() else "?" for letter in words)
    return words if len(words) <= most else words[: most - 3] + "..."
