"""Reward expressions: "10*pickscore + 2*hpsv2@/weights/hps - 0.1*my_rewards:ink".

    expression  :=  [+|-] term  {(+|-) term}
    term        :=  [weight*] name [@location]
    name        :=  a built-in name  |  module:function  |  http(s)://host:port/path?batch=8
    location    :=  folder, file or hub id, "quoted" where it holds spaces or signs

Paths and addresses may hold + and - themselves. Inside them a sign joins terms only where it
follows a space, or where what follows reads as a term: `weight*name`, or after a + also a built-in
name, module:function or http://. Quote a location (or write %2B in an address) to be plain.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from diffusion.errors import InputError, did_you_mean, shown

LONGEST = 10_000  # characters of an expression; reading it takes their square
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SIGN = re.compile(r"\s*([+-])\s*")
_WEIGHT = re.compile(rf"\s*([+-]?{_NUMBER})\s*\*\s*")
_URL = re.compile(r"https?://")
_NAME = re.compile(r"[A-Za-z_][\w.]*(?::[A-Za-z_][\w.]*)?")


@dataclass(frozen=True)
class Term:
    """One weighted reward: weight * name@location."""

    weight: float
    name: str
    location: str | None = None

    @property
    def is_url(self) -> bool:
        return _URL.match(self.name) is not None

    @property
    def is_function(self) -> bool:
        return ":" in self.name and not self.is_url


def parse(expression: str, known: Collection[str]) -> list[Term]:
    """The terms of an expression, in order; `known` are the built-in names.

    Raises InputError where it cannot be read or names an unknown reward.
    """
    if not expression.strip():
        raise InputError(f"The reward is empty: expected an expression such as {_example(known)}.")
    if len(expression) > LONGEST:
        raise InputError(
            f'The reward "{shown(expression)}" has {len(expression)} characters: expected at most '
            f"{LONGEST}. Write a long sum as a function of your own, module:function."
        )
    terms: list[Term] = []
    rest = expression
    while rest.strip() or not terms:
        sign = _SIGN.match(rest)
        if terms and not sign:
            advice = " The weight comes first: 2*clip." if rest.lstrip().startswith("*") else ""
            raise _unreadable(expression, rest, f"+ or - before another term.{advice}")
        term, rest = _term(expression, rest[sign.end() if sign else 0 :], known)
        negative = sign is not None and sign.group(1) == "-"
        terms.append(Term(-term.weight if negative else term.weight, term.name, term.location))
    return terms


def _term(expression: str, text: str, known: Collection[str]) -> tuple[Term, str]:
    """The term that `text` begins with, and what follows it."""
    weight = 1.0
    if found := _WEIGHT.match(text):
        weight, text = float(found.group(1)), text[found.end() :]
        if not math.isfinite(weight):
            given = shown(found.group(1))
            raise InputError(f'Reward "{shown(expression)}": the weight {given} is not finite.')
    text = text.lstrip()
    if _URL.match(text):
        url, rest = _free_text(text, known)
        return Term(weight, url), rest
    found = _NAME.match(text)
    if not found:
        raise _unreadable(expression, text, "a reward: [weight*]name[@location].")
    name, rest = found.group(), text[found.end() :]
    if ":" not in name and name not in known:
        raise _unknown(expression, name, text, known)
    if not rest.lstrip().startswith("@"):
        return Term(weight, name), rest
    location, rest = _location(expression, rest.lstrip()[1:], known)
    if ":" in name:
        raise InputError(f'Reward "{shown(name)}" is a function of yours and takes no @location.')
    return Term(weight, name, location), rest


def _location(expression: str, text: str, known: Collection[str]) -> tuple[str, str]:
    if text[:1] in ("'", '"'):
        location, quote, rest = text[1:].partition(text[0])
        if not quote:
            raise _unreadable(expression, text, f"a closing {text[0]}.")
    else:
        location, rest = _free_text(text, known)
    if not location:
        raise _unreadable(expression, text, "a folder, file or hub id after @.")
    return location, rest


def _free_text(text: str, known: Collection[str]) -> tuple[str, str]:
    """Split a path or address, which may hold signs, from the terms after it."""
    built_in = "|".join(re.escape(name) for name in known) or r"(?!)"
    weighted = rf"[+-]\s*{_NUMBER}\s*\*\s*[A-Za-z_]"
    ends = rf"(?=\s|$|[@+]|-\s*{_NUMBER}\s*\*)"
    bare = rf"\+\s*(?:https?://|(?:{built_in}|[A-Za-z_][\w.]*:[A-Za-z_][\w.]*){ends})"
    joint = re.search(rf"\s+[+-]|{weighted}|{bare}", text)
    end = joint.start() if joint else len(text)
    return text[:end].strip(), text[end:]


def _example(known: Collection[str]) -> str:
    return f'"{next(iter(known), "module:function")}" or "10*pickscore+2*hpsv2"'


def _unreadable(expression: str, rest: str, expected: str) -> InputError:
    where = f'at "{shown(rest.strip())}"' if rest.strip() else "at its end"
    return InputError(f'Reward "{shown(expression)}" cannot be read {where}: expected {expected}')


def _unknown(expression: str, name: str, text: str, known: Collection[str]) -> InputError:
    # jpeg-compressibility reads as "jpeg minus ..."; suggest from the whole hyphenated word.
    word = re.match(r"[\w.-]+", text)
    guess = (word.group() if word else name).replace("-", "_")
    whole = "" if expression.strip() == name else f' in "{shown(expression)}"'
    own = " For a function of yours write module:function." if "." in name else ""
    return InputError(f'Unknown reward "{shown(name)}"{whole}.{did_you_mean(guess, known)}{own}')
