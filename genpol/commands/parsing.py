"""The words of a command line as options. tyro reads them; what it refuses is said in one line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from diffusion.errors import InputError, did_you_mean, shown
from genpol.commands.described import Option, options_of
from offline.option_check import check_numbers, numeric_fields

HELP = ("-h", "--help")
LONGEST = 500  # characters of an error
LONGEST_WORD = 4_096  # bytes, as of a path


def parse(options: type, words: Sequence[str], prog: str) -> Any:
    """The options that `words` say.

    A file of options may have `defaults(given)`: the defaults that follow from options that were
    given, such as --agent. The words are then read a second time with those, so that every option
    that was given wins.

    Raises:
        InputError: an option or a value that there is not, one that is missing, or a number that
            is not finite or out of its range.
    """
    _require_words(words)
    words = gathered(options, words)
    given = _read(options, words, prog)
    _require_ascii(options, words)
    check_numbers(given)
    if (defaults := _defaults(options)) is None:
        return given
    completed = _read(options, words, prog, defaults(given))
    check_numbers(completed)
    return completed


def gathered(options: type, words: Sequence[str]) -> list[str]:
    """The words, in which an option that takes several values stands once: `--data a --data b`
    says what `--data a b` says."""
    several = {
        flag
        for option in options_of(options).values()
        if option.metavar.endswith(" ...")
        for flag in option.flags
    }
    values: dict[str, list[str]] = {}
    out: list[str | list[str]] = []
    flag = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            flag = name.replace("_", "-")
            if flag not in several:
                out.append(word)
            else:
                if flag not in values:
                    values[flag] = []
                    out += [flag, values[flag]]
                if equals:
                    values[flag].append(value)
                    flag = ""
        elif flag in several:
            values[flag].append(word)
        else:
            out.append(word)
    return [word for part in out for word in ([part] if isinstance(part, str) else part)]


def one_line(error: Exception) -> str:
    """An error as one line of bounded length; what is left out stands in the middle of it."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 105]} ... {line[-100:]}"


def _require_words(words: Sequence[str]) -> None:
    """No option takes what cannot be part of a command line, or is longer than a path may be.

    Raises:
        InputError: shows the beginning of the word.
    """
    for word in words:
        try:
            good = "\x00" not in word and len(os.fsencode(word)) <= LONGEST_WORD
        except UnicodeEncodeError:
            good = False
        if not good:
            raise InputError(
                f'expected words of at most {LONGEST_WORD} bytes of text, received "{shown(word)}" '
                f"of {len(word)} characters"
            )


def _require_ascii(options: type, words: Sequence[str]) -> None:
    """Python reads the digits of every script, which nobody means who types them for a number.

    Raises:
        InputError: names the option.
    """
    numeric = {f"--{name.replace('_', '-')}" for name in numeric_fields(options)}
    flag = ""
    for word in words:
        name, _, value = word.partition("=") if word.startswith("--") else (flag, "", word)
        flag = name.replace("_", "-")
        if flag in numeric and not value.isascii():
            raise InputError(f'{flag} expects plain digits; received "{shown(value)}".')


def start(options: type, words: Sequence[str], prog: str) -> Any:
    """The defaults that help shows beside `words`; None for the fields' own.

    Words that cannot be read are no reason to withhold help: they change no default.
    """
    words = gathered(options, [word for word in words if word not in HELP])
    defaults = _defaults(options)
    if defaults is None or not words:
        return None
    try:
        return defaults(_read(options, words, prog))
    except InputError:
        return None


def _defaults(options: type) -> Callable[[Any], Any] | None:
    return getattr(sys.modules[options.__module__], "defaults", None)


def _read(options: type, words: Sequence[str], prog: str, default: Any = None) -> Any:
    import tyro

    def refuse(event: Any) -> None:
        if line := refusal(event, options, prog):
            raise InputError(line)

    begin = {} if default is None else {"default": default}
    with _when_refused(refuse):
        return tyro.cli(options, prog=prog, args=words, **begin)


def _when_refused(hook: Callable[[Any], None]) -> AbstractContextManager[None]:
    """tyro's hook for errors, which a later version may lack: then it prints its own boxes."""
    try:
        from tyro._errors import on_parse_error
    except ImportError:
        return nullcontext()
    return on_parse_error(hook)


def refusal(event: Any, options: type, prog: str) -> str | None:
    """One line for what tyro refuses; None for kinds that are not known here."""
    kind, more = type(event).__name__, f"`{prog} --help` lists the options"
    known = {flag: o for o in options_of(options).values() for flag in o.flags or (o.name,)}
    if kind in ("UnrecognizedArgs", "MissingArgs"):
        tokens = getattr(event, "tokens", None) or getattr(event, "unrecognized_tokens", [])
        unknown = next((t.partition("=")[0] for t in tokens if t.startswith("-")), None)
        if unknown:
            return f"unknown option {shown(unknown)}.{_similar(unknown, list(known))} {more}."
        if tokens:
            return f'"{shown(tokens[0])}" follows no option that takes it; {more}.'
        missing = [o.flags[0] if o.flags else o.metavar for o in _missing(event, known)]
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} needed; {more}."
    name = event.argument.display_name() if getattr(event, "argument", None) else ""
    if name not in known:
        return None
    metavar = known[name].metavar
    if kind == "InvalidChoice":
        said = f'{name} expects one of {", ".join(event.choices)}; received "{shown(event.value)}".'
        return said + _similar(event.value, event.choices)
    if kind == "BadValue":
        return f"{name} expects {_expected(metavar)}; {more}."
    if kind == "InstantiationFailure":
        quoted = re.findall(r"'([^']*)'", event.message)
        received = shown(" ".join(quoted) or event.message)
        return f'{name} expects {_expected(metavar)}; received "{received}".'
    return None


def _missing(event: Any, known: dict[str, Option]) -> list[Option]:
    names = [argument.arg.display_name() for argument in event.missing_arguments]
    return [known[name] for name in names]


def _expected(metavar: str) -> str:
    """A metavar in words, if it is a number's."""
    words = {
        "": "no value", "INT": "a whole number", "FLOAT": "a number", "INT ...": "whole numbers",
        "INT INT": "two whole numbers", "FLOAT ...": "numbers", "TEXT": "a value",
        "PATH": "a path", "TEXT ...": "a value or several",
    }  # fmt: skip
    return words.get(metavar, metavar)


def _similar(name: str, known: Sequence[str]) -> str:
    """A suggestion where one is close; the list of all would be no help."""
    hint = did_you_mean(shown(name), known)
    return hint if "Did you mean" in hint else ""
