"""Which columns of a table, or keys of a JSON object, hold the prompt and its negative prompt.

The prompt is in the column that the user names; else in "prompt"; else in the only one whose name
says that it holds prompts, which is told in one line. All other columns are metadata of the row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from diffusion.errors import InputError, did_you_mean, listed, shown
from diffusion.prompts.prompt import Prompt

LONGEST = 2**20  # bytes of one record; more is not a file of prompts
DEFAULT = "prompt"
# Names of columns of prompts in public datasets, without case, blanks and punctuation.
_PLAUSIBLE = frozenset(
    "prompt prompts prompttext promptstext textprompt textprompts inputprompt userprompt prompten "
    "caption captions captiontext captionen imagecaption description text texts inputtext texten "
    "imagetext imageprompt".split()
)

_BROKEN = re.compile("[\0\ud800-\udfff]")

Fail = Callable[[str], InputError]  # from what is wrong to an error that says where
Tell = Callable[[str], object]


def plain_name(name: str) -> str:
    """A column's name without case, blanks and punctuation."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


@lru_cache(1024)
def is_negative(name: str) -> bool:
    """Whether a column of this name holds negative prompts."""
    return plain_name(name) == "negativeprompt"


class Columns:
    """The columns of one file, chosen at the first names that are seen.

    Args:
        spec: the file, as messages name it.
        wanted: the column that the user named, or None.
        tell: gets one line where a column other than "prompt" was chosen.

    Attributes:
        name: the prompt's column; "prompt" as long as none was chosen.
        negatives: whether a row had a negative prompt of its own.
    """

    def __init__(self, spec: str, wanted: str | None, tell: Tell) -> None:
        self.spec, self.tell, self.negatives = spec, tell, False
        self.name = DEFAULT if wanted is None else wanted
        self._chosen = wanted is not None

    def choose(
        self, names: Iterable[str], fail: Fail, kind: str, texts: Iterable[str] | None = None
    ) -> str:
        """The prompt's column among `names`; InputError where it is not there, or not clear.

        `texts` are the columns known to hold text: where there is one alone, it is the prompt's.
        """
        names = list(names)
        if not self._chosen:
            self.name, self._chosen = self._guessed(names, fail, kind, texts), True
        if self.name not in names:
            raise fail(_no_column(kind, self.name, names))
        return self.name

    def _guessed(self, names: list[str], fail: Fail, kind: str, texts: Iterable[str] | None) -> str:
        if DEFAULT in names:
            return DEFAULT
        known = names if texts is None else list(texts)
        likely = [name for name in known if plain_name(name) in _PLAUSIBLE]
        if not likely and texts is not None:
            likely = [name for name in known if not is_negative(name)]
            likely = likely if len(likely) == 1 else []
        if len(likely) > 1:
            raise fail(
                f'no {kind} "{DEFAULT}", and several that may hold the prompts: {listed(likely)}. '
                "Name one with --prompt-column."
            )
        if not likely:
            raise fail(_no_column(kind, DEFAULT, names))
        self.tell(f'{self.spec}: the prompts are in the {kind} "{shown(likely[0])}".')
        return likely[0]

    def prompt(self, row: Mapping[str, Any], fail: Fail, empty_is_none: bool = False) -> Prompt:
        """The prompt of a row that has the chosen column; all other columns are its metadata.

        With `empty_is_none` an empty negative prompt is none at all, as in a table of text.
        """
        text, negative, rest = checked(row[self.name], "prompt", fail), None, {}
        for name, value in row.items():
            if name == self.name:
                continue
            if not is_negative(name):
                rest[name] = value
            elif value is not None:
                negative = checked(value, "negative prompt", fail)
        if empty_is_none and not negative:
            negative = None
        self.negatives = self.negatives or negative is not None
        return Prompt(text, negative, rest)


def checked(value: object, what: str, fail: Fail) -> str:
    """A value that must be text, without the white space around it."""
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise fail(f"the {what} is a {kind}, not a string: put it in double quotes.")
    if _BROKEN.search(value):
        raise fail(f"a NUL or half a surrogate pair in the {what}: take it out.")
    return value.strip()


def _no_column(kind: str, column: str, names: list[str]) -> str:
    """What is missing, what there is, and which of it was perhaps meant, on one line."""
    hint = did_you_mean(column, names)
    known = f" Known: {listed(names)}." if hint.startswith(" Did") else ""
    return f'no {kind} "{shown(column)}".{hint}{known}'
