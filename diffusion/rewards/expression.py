"""Reward expressions: "10*pickscore + 2*hpsv2@/weights/hps - 0.1*my_rewards:ink".

    expression  :=  [+|-] part  {(+|-) part}
    part        :=  [weight*] (reward | ensemble)
    reward      :=  name [@location]
    ensemble    :=  min|mean|var|std ( expression , expression {, expression} )
    name        :=  a built-in name  |  module:function  |  http(s)://host:port/path?batch=8
    location    :=  folder, file, hub id or address, "quoted" where it holds spaces or signs;
                    of module:function: float, uint8 or pil, the images that it takes

An ensemble of rewards r_1..r_n of one image is their least (min), mean, variance (var, over n) or
standard deviation (std): "mean(a, b, c) - 0.5*var(a, b, c)".

Paths and addresses may hold + and - themselves. Inside them a sign joins terms only where it
follows a space, or where what follows reads as a term: `weight*name`, or after a + also a built-in
name, module:function or http://. Inside an ensemble they end at a comma, or at a parenthesis that
they did not open. Quote a location (or write %2B in an address) to be plain.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from diffusion.errors import InputError, did_you_mean, shown

LONGEST = 10_000  # characters of an expression; reading it takes their square
DEEPEST = 8  # ensembles inside one another
ENSEMBLES = ("min", "mean", "var", "std")
FORMS = ("float", "uint8", "pil")
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SIGN = re.compile(r"\s*([+-])\s*")
_WEIGHT = re.compile(rf"\s*([+-]?{_NUMBER})\s*\*\s*")
_URL = re.compile(r"https?://")
_NAME = re.compile(r"[A-Za-z_][\w.]*(?::[A-Za-z_][\w.]*)?")
_CALL = re.compile(r"([A-Za-z_]\w*)\s*\(")
_OPENING = re.compile(rf"\b(?:{'|'.join(ENSEMBLES)})\s*$")
_FORM = re.compile(rf"\s*@({'|'.join(FORMS)})\b(?![\w./])")


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


@dataclass(frozen=True)
class Ensemble:
    """weight * function(sum, sum, ...): `function` is one of `ENSEMBLES`."""

    weight: float
    function: str
    arguments: tuple[tuple[Part, ...], ...]


Part = Term | Ensemble


def parse(expression: str, known: Collection[str]) -> list[Part]:
    """The parts of an expression, in order; `known` are the built-in names.

    Raises InputError where it cannot be read or names an unknown reward.
    """
    if not expression.strip():
        raise InputError(f"The reward is empty: expected an expression such as {_example(known)}.")
    if len(expression) > LONGEST:
        raise InputError(
            f'The reward "{shown(expression)}" has {len(expression)} characters: expected at most '
            f"{LONGEST}. Write a long sum as a function of your own, module:function."
        )
    return _Reading(expression, known).sum(expression, 0)[0]


def rewards_of(parts: Sequence[Part]) -> Iterator[Term]:
    """Every reward that an expression names, in order, as often as it does."""
    for part in parts:
        if isinstance(part, Term):
            yield part
        else:
            for argument in part.arguments:
                yield from rewards_of(argument)


def split_expressions(text: str) -> list[str]:
    """Expressions separated by commas that stand outside of ensembles."""
    pieces, depth = [""], 0
    for character in text:
        if depth or (character == "(" and _OPENING.search(pieces[-1])):
            depth += (character == "(") - (character == ")")
        if character == "," and not depth:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces


class _Reading:
    """Reads one expression; each method takes the text that is left and returns what is then."""

    def __init__(self, expression: str, known: Collection[str]) -> None:
        self.expression, self.known = expression, known

    def sum(self, text: str, depth: int) -> tuple[list[Part], str]:
        """The parts that `text` begins with: all of it, or up to the end of an argument."""
        parts: list[Part] = []
        rest = text
        while not parts or not self._ended(rest, depth):
            sign = _SIGN.match(rest)
            if parts and not sign:
                advice = " The weight comes first: 2*clip." if rest.lstrip().startswith("*") else ""
                other = ", or , or )" if depth else ""
                raise self._unreadable(rest, f"+ or - before another term{other}.{advice}")
            part, rest = self._part(rest[sign.end() if sign else 0 :], depth)
            if sign is not None and sign.group(1) == "-":
                part = _negative(part)
            parts.append(part)
        return parts, rest

    def _ended(self, rest: str, depth: int) -> bool:
        rest = rest.lstrip()
        return not rest or (depth > 0 and rest[0] in ",)")

    def _part(self, text: str, depth: int) -> tuple[Part, str]:
        weight = 1.0
        if found := _WEIGHT.match(text):
            weight, text = float(found.group(1)), text[found.end() :]
            if not math.isfinite(weight):
                given, whole = shown(found.group(1)), shown(self.expression)
                raise InputError(f'Reward "{whole}": the weight {given} is not finite.')
        text = text.lstrip()
        if call := _CALL.match(text):
            return self._ensemble(weight, call.group(1), text, text[call.end() :], depth + 1)
        if _URL.match(text):
            url, rest = self._free_text(text, depth)
            return Term(weight, url), rest
        found = _NAME.match(text)
        if not found:
            raise self._unreadable(text, "a reward: [weight*]name[@location].")
        name, rest = found.group(), text[found.end() :]
        if ":" not in name and name not in self.known:
            raise self._unknown(name, text)
        if ":" in name and (form := _FORM.match(rest)):
            return Term(weight, name, form.group(1)), rest[form.end() :]
        if not rest.lstrip().startswith("@"):
            return Term(weight, name), rest
        location, rest = self._location(rest.lstrip()[1:], depth)
        if ":" in name:
            raise InputError(
                f'Reward "{shown(name)}" is a function of yours and takes no @location, only '
                f"{', '.join('@' + form for form in FORMS)}: the images that it gets."
            )
        return Term(weight, name, location), rest

    def _ensemble(
        self, weight: float, name: str, text: str, rest: str, depth: int
    ) -> tuple[Ensemble, str]:
        """`rest` follows the opening parenthesis; `text` begins with the name, for messages."""
        if name not in ENSEMBLES:
            takes = " A reward takes no parentheses." if name in self.known else ""
            hint = takes or did_you_mean(name, ENSEMBLES)
            raise InputError(
                f'Reward "{shown(self.expression)}": no function "{shown(name)}".{hint}'
            )
        if depth > DEEPEST:
            raise self._unreadable(text, f"at most {DEEPEST} functions inside one another.")
        arguments: list[tuple[Part, ...]] = []
        while True:
            parts, rest = self.sum(rest, depth)
            arguments.append(tuple(parts))
            rest = rest.lstrip()
            if not rest:
                raise self._unreadable("", f"a ) that closes {name}(.")
            end, rest = rest[0], rest[1:]
            if end == ")":
                break
        if len(arguments) < 2:
            raise InputError(
                f'Reward "{shown(self.expression)}": {name}( ) has one reward, expected at least '
                f"two, as in {name}(clip, hpsv2)."
            )
        return Ensemble(weight, name, tuple(arguments)), rest

    def _location(self, text: str, depth: int) -> tuple[str, str]:
        if text[:1] in ("'", '"'):
            location, quote, rest = text[1:].partition(text[0])
            if not quote:
                raise self._unreadable(text, f"a closing {text[0]}.")
        else:
            location, rest = self._free_text(text, depth)
        if not location:
            raise self._unreadable(text, "a folder, file or hub id after @.")
        return location, rest

    def _free_text(self, text: str, depth: int) -> tuple[str, str]:
        """Split a path or address, which may hold signs, from what follows it."""
        built_in = "|".join(re.escape(name) for name in self.known) or r"(?!)"
        weighted = rf"[+-]\s*{_NUMBER}\s*\*\s*[A-Za-z_]"
        after = "@+,)" if depth else "@+"
        ends = rf"(?=\s|$|[{after}]|-\s*{_NUMBER}\s*\*)"
        bare = rf"\+\s*(?:https?://|(?:{built_in}|[A-Za-z_][\w.]*:[A-Za-z_][\w.]*){ends})"
        joint = re.search(rf"\s+[+-]|{weighted}|{bare}", text)
        end = joint.start() if joint else len(text)
        if depth:
            end = min(end, _argument_end(text))
        return text[:end].strip(), text[end:]

    def _unreadable(self, rest: str, expected: str) -> InputError:
        where = f'at "{shown(rest.strip())}"' if rest.strip() else "at its end"
        return InputError(
            f'Reward "{shown(self.expression)}" cannot be read {where}: expected {expected}'
        )

    def _unknown(self, name: str, text: str) -> InputError:
        # jpeg-compressibility reads as "jpeg minus ..."; suggest from the whole hyphenated word.
        word = re.match(r"[\w.-]+", text)
        guess = (word.group() if word else name).replace("-", "_")
        whole = "" if self.expression.strip() == name else f' in "{shown(self.expression)}"'
        own = " For a function of yours write module:function." if "." in name else ""
        hint = did_you_mean(guess, self.known)
        if name in ENSEMBLES:
            hint = f" The function of that name takes rewards in parentheses: {name}(clip, hpsv2)."
        return InputError(f'Unknown reward "{shown(name)}"{whole}.{hint}{own}')


def _negative(part: Part) -> Part:
    if isinstance(part, Term):
        return Term(-part.weight, part.name, part.location)
    return Ensemble(-part.weight, part.function, part.arguments)


def _argument_end(text: str) -> int:
    """Where a comma, or a parenthesis that `text` did not open, ends an argument."""
    depth = 0
    for index, character in enumerate(text):
        if character == ")" and depth == 0 or character == "," and depth == 0:
            return index
        depth += (character == "(") - (character == ")")
    return len(text)


def _example(known: Collection[str]) -> str:
    return f'"{next(iter(known), "module:function")}" or "10*pickscore+2*hpsv2"'
