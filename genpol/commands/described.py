"""What help, completion and errors know of an option, read from its dataclass.

An option's text is the docstring below its field. A field whose default says nothing (None, an
empty tuple or string) ends its docstring with `Default: what happens then.`, or its file has the
text in `DEFAULT_TEXTS`, computed from the tables that decide it. `GROUPS`, beside the dataclass, is
the order in which help shows the options: subject -> fields, what most people need first.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

KINDS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: ""}


@dataclass(frozen=True)
class Option:
    """One option of a command."""

    name: str
    flags: tuple[str, ...]
    """As typed: --steps, or --trust and --no-trust; empty for a word without a name."""
    metavar: str
    """Of its values: INT, a|b|c, TEXT ..., or empty for --trust."""
    choices: tuple[str, ...]
    """The words it accepts, where there are only a few."""
    text: str
    default: str
    """What it is when not given, in words."""
    required: bool = False

    @property
    def shown(self) -> str:
        """As in help: flags and values."""
        return " ".join(filter(None, (", ".join(self.flags), self.metavar)))


def options_of(options: type, start: Any = None) -> dict[str, Option]:
    """The options of a dataclass by field name, in the order of its groups.

    Args:
        start: an instance whose values are shown as defaults instead of the fields' own.
    """
    hints = get_type_hints(options, include_extras=True)
    texts, known = docstrings(options), getattr(_module(options), "DEFAULT_TEXTS", {})
    found = {}
    for f in fields(options):
        hint: Any = hints[f.name]
        marks: tuple[Any, ...] = getattr(hint, "__metadata__", ())
        value = f.default if start is None else getattr(start, f.name)
        text, default = _split(texts.get(f.name, ""))
        if value not in (None, (), "", MISSING):
            default = _written(f.name, value)
        elif f.name in known:
            default = known[f.name]
        metavar = next((m.metavar for m in marks if getattr(m, "metavar", None)), kind(hint))
        positional = any("Positional" in repr(mark) for mark in marks)
        flag = f.name.replace("_", "-")
        flags = () if positional else (f"--{flag}",) if metavar else (f"--{flag}", f"--no-{flag}")
        required = value is MISSING
        found[f.name] = Option(f.name, flags, metavar, choices(hint), text, default, required)
    return {name: found[name] for names in groups(options).values() for name in names}


def groups(options: type) -> Mapping[str, tuple[str, ...]]:
    """Subject -> fields; one group where the dataclass's file names none."""
    all_of_them = {"options": tuple(f.name for f in fields(options))}
    return getattr(_module(options), "GROUPS", all_of_them)


def docstrings(options: type) -> dict[str, str]:
    """Field -> the docstring below it, in the dataclass or one that it extends."""
    found: dict[str, str] = {}
    for base in reversed(options.__mro__):
        if is_dataclass(base):
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
            for field, below in pairwise(tree.body[0].body):  # type: ignore[attr-defined]
                if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                    text = getattr(below.value, "value", None)
                    if isinstance(text, str) and isinstance(field.target, ast.Name):
                        found[field.target.id] = " ".join(text.split())
    return found


def kind(hint: Any) -> str:
    """A type as help writes it: `INT`, `a|b`, `INT INT`, `TEXT ...`; empty for a switch."""
    hint = _bare(hint)
    inner = tuple(arg for arg in get_args(hint) if arg is not NoneType)
    if get_origin(hint) in (Union, UnionType):
        return "|".join(map(kind, inner))
    if get_origin(hint) is Literal:
        return "|".join(map(str, inner))
    if get_origin(hint) is tuple:
        return " ".join("..." if arg is Ellipsis else kind(arg) for arg in inner)
    return KINDS[hint]


def choices(hint: Any) -> tuple[str, ...]:
    """The words that a type accepts, where it lists them."""
    hint = _bare(hint)
    if get_origin(hint) is Literal:
        return tuple(map(str, get_args(hint)))
    return tuple(word for arg in get_args(hint) for word in choices(arg))


def _bare(hint: Any) -> Any:
    """A type without what is annotated to it, such as its range."""
    return hint.__origin__ if hasattr(hint, "__metadata__") else hint


def _split(doc: str) -> tuple[str, str]:
    """The text, and what follows `Default:` in it."""
    before, said, default = doc.rpartition("Default: ")
    return (before.strip(), default.rstrip(".")) if said else (doc, "")


def _written(name: str, value: Any) -> str:
    """A value as one would write it on the command line."""
    if isinstance(value, bool):
        return f"--{'' if value else 'no-'}{name.replace('_', '-')}"
    if isinstance(value, tuple):
        return " ".join(_written(name, item) for item in value)
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _module(options: type) -> Any:
    return sys.modules[options.__module__]
