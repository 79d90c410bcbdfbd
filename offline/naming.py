"""Matches observations that are called differently by whoever stores, sends and learns from them.

    state  observation.state  observation/state  {"observation": {"state": ...}}    one name
    top  images.top  observation.images.top  {"images": {"top": ...}}               one name

Names are compared in a normal form: lower case, without separators and without the prefix
"observation". Those that still find no partner are compared without the prefix "images", too. A
name that has several partners is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from offline.errors import InputError, did_you_mean, listed

_WORD = re.compile(r"[^\W_]+")
_PREFIXES = (("observation", "observations", "obs"), ("images", "image"))


def normal_form(name: str, prefixes: int = 1) -> str:
    """A name without separators and prefixes: "observation.images.top" is "imagestop".

    Args:
        name: of an observation.
        prefixes: 1 leaves out "observation", 2 also "images". A name is never left empty.
    """
    words = _WORD.findall(name.lower())
    for known in _PREFIXES[:prefixes]:
        if len(words) > 1 and words[0] in known:
            words = words[1:]
    return "".join(words)


def match_names(wanted: Iterable[str], there: Iterable[str], remedy: str = "") -> dict[str, str]:
    """Which of the names that are there each wanted one means: wanted -> there.

    A name that is there itself means itself. Names without a partner are left out.

    Args:
        wanted: names that somebody needs.
        there: names that are offered.
        remedy: what to do about a name with several partners, for the message.

    Raises:
        InputError: a name could mean several that are there, or several could mean one.
    """
    wanted, there = list(dict.fromkeys(wanted)), list(dict.fromkeys(there))
    found = {name: name for name in wanted if name in there}
    for prefixes in range(1, len(_PREFIXES) + 1):
        ours = _by_form((name for name in wanted if name not in found), prefixes)
        taken = set(found.values())
        theirs = _by_form((name for name in there if name not in taken), prefixes)
        for form, names in ours.items():
            partners = theirs.get(form, [])
            if len(names) == len(partners) == 1:
                found[names[0]] = partners[0]
            elif partners:
                raise InputError(
                    f'which observation is "{names[0]}" is ambiguous: '
                    f"{listed(names)} may each be {listed(partners)}{remedy and f': {remedy}'}"
                )
    return found


def own_names(asked: Iterable[str], known: Iterable[str], what: str) -> tuple[str, ...]:
    """The names of what a user asks for, as their owner calls them.

    Args:
        asked: as the user calls them.
        known: all that there are.
        what: who owns them, such as "the dataset".

    Raises:
        InputError: there is no such observation, or several may be meant.
    """
    asked, known = list(asked), list(known)
    found = match_names(asked, known)
    for name in asked:
        if name not in found:
            raise InputError(f'{what} has no observation "{name}".{did_you_mean(name, known)}')
    return tuple(found[name] for name in asked)


def _by_form(names: Iterable[str], prefixes: int) -> dict[str, list[str]]:
    forms: dict[str, list[str]] = {}
    for name in names:
        if form := normal_form(name, prefixes):
            forms.setdefault(form, []).append(name)
    return forms
