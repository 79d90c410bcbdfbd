"""The help of a command: what most people need, then the other options by subject."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from genpol.commands.described import Option, groups, options_of
from genpol.commands.table import Command

COLUMN = 28  # where texts begin


def overview(commands: Mapping[str, Command]) -> str:
    """The commands, one line each."""
    lines = [f"  {_bold(f'{name:<19}')}{entry.summary}" for name, entry in commands.items()]
    return "\n".join(
        [
            "usage: genpol COMMAND [options]",
            "",
            "Expressive generative policies, and the operators that improve any of them.",
            "",
            _bold("commands:"),
            *lines,
            "",
            "`genpol COMMAND --help` lists a command's options; `genpol --version` the version.",
            "`source <(genpol completion bash)` lets the Tab key complete them; zsh works alike.",
        ]
    )


def command_help(prog: str, options: type, start: Any = None) -> str:
    """Usage, what the command does, and its options by subject.

    Args:
        prog: the words that call it.
        start: options whose values are shown as defaults; None: the fields' own.
    """
    known = options_of(options, start)
    needed = [o.shown for o in known.values() if o.required]
    width = max(60, min(100, shutil.get_terminal_size((100, 24)).columns))
    parts = [f"usage: {' '.join([prog, *needed, '[options]'])}", _about(options, width)]
    for subject, names in groups(options).items():
        lines = [line for name in names for line in _entry(known[name], width)]
        parts.append("\n".join([_bold(f"{subject}:"), *lines]))
    parts.append(f"`{prog} --help` prints this.")
    return "\n\n".join(parts)


def _about(options: type, width: int) -> str:
    """The dataclass's docstring, its paragraphs folded anew."""
    paragraphs = (inspect.getdoc(options) or "").split("\n\n")
    return "\n\n".join("\n".join(textwrap.wrap(text, width)) for text in paragraphs)


def _entry(option: Option, width: int) -> Iterator[str]:
    """An option's lines: how it is written on the left, what it does on the right."""
    ends = "(required)" if option.required else f"(default: {option.default})"
    lines = textwrap.wrap(
        f"{option.text} {ends}", width - COLUMN, break_on_hyphens=False, break_long_words=False
    )
    left = f"  {option.shown}"
    if len(left) > COLUMN - 2:
        yield _bold(left)
        left = ""
    for line in lines:
        yield f"{_bold(left)}{' ' * (COLUMN - len(left))}{line}"
        left = ""


def _bold(text: str) -> str:
    plain = not text or not sys.stdout.isatty() or "NO_COLOR" in os.environ
    return text if plain else f"\033[1m{text}\033[0m"
