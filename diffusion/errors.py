"""Errors a user can act on: one line each, shown without a traceback, exit code 2."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from pathlib import PurePath

_LISTED = 300  # characters of names that a message lists
_SHORT = reprlib.Repr()  # a few entries of a few levels: a value may be large, or deep


class InputError(ValueError):
    """Input that cannot be used. The message is one line: expected, received, cause, remedy.

    `exit_code` is what the command line leaves with; it recognises such errors by this attribute,
    so that packages which never import each other can each have their own.
    """

    exit_code = 2


class Diverged(InputError):
    """Fine-tuning that has become NaN or infinite; says what, when, and what to try."""

    agreed = True  # of several processes of a run, all see the same numbers


class RewardError(InputError):
    """A reward that raised, or returned NaN or the wrong shape; names the offending prompt."""


class LostProcess(InputError):
    """Another process of the run has ended, and with it the run; says which, and why if known.

    Args:
        line: what to say.
        speaks: whether this process is the one that says it.
    """

    exit_code = 1

    def __init__(self, line: str, speaks: bool = True) -> None:
        super().__init__(line)
        self.speaks = speaks


def shown(value: object, most: int = 80) -> str:
    """A received value as a message repeats it: on one line, cut after `most` characters."""
    if isinstance(value, BaseException | PurePath):
        value = " ".join(str(value).split())
    try:
        text = value if isinstance(value, str) else _SHORT.repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a very long number"
    cut = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: most + 1])
    return cut if len(cut) <= most else f"{cut[:most]}..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion such as ' Did you mean "attributes"?', or the list of what there is."""
    known = list(known)
    close = difflib.get_close_matches(name[:100], [one[:100] for one in known[:1000]], cutoff=0.5)
    return f' Did you mean "{shown(close[0])}"?' if close else f" Known: {listed(known)}."


def listed(names: Iterable[str]) -> str:
    """Names for a message: at most 50, and about 300 characters."""
    names, first = list(names), list[str]()
    while len(first) < min(len(names), 50) and sum(map(len, first)) < _LISTED:
        first.append(shown(names[len(first)]))
    more = f" and {len(names) - len(first)} more" if len(first) < len(names) else ""
    return f"{', '.join(first)}{more}"
