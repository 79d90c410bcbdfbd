"""The code blocks of a page, and its `genpol` commands, for tests that run them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)[^\S\n]*\n(.*?)^```[^\S\n]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language ("" where none is named), its text, the line it begins at."""

    language: str
    text: str
    line: int


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page in order, of one language if it is given."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(match[1], match[2], text[: match.start()].count("\n") + 1)
        for match in _FENCE.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def lines(block: Block) -> list[str]:
    """The commands of a shell block: continued lines joined, comments and blank lines left out."""
    joined = block.text.replace("\\\n", " ")
    every = (line.strip() for line in joined.splitlines())
    return [line for line in every if line and not line.startswith("#")]


def words(line: str) -> list[str]:
    """A shell line as words, comments left out."""
    return shlex.split(line, comments=True)


def with_options(command: Sequence[str], smaller: Mapping[str, str]) -> list[str]:
    """A command with other options: the value of one that is there is replaced, others are added.

    Args:
        command: words, such as ["genpol", "train", "--steps", "20000"].
        smaller: option -> value, such as {"--steps": "40"}.
    """
    out = list(command)
    for option, value in smaller.items():
        if option in out:
            out[out.index(option) + 1] = value
        else:
            out += [option, value]
    return out


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures, those in code blocks left out."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: Path) -> set[str]:
    """What may stand behind "#" in a link to the page: its headings, as GitHub names them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found: set[str] = set()
    counts: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        plain = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(f"{name}-{counts[name]}" if name in counts else name)
        counts[name] = counts.get(name, 0) + 1
    return found


def sections(page: Path) -> dict[str, str]:
    """Heading of the second level -> its text."""
    parts = re.split(r"^## (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def python_blocks(text: str) -> list[str]:
    """The Python blocks of a section."""
    return [match[2] for match in _FENCE.finditer(text) if match[1] == "python"]


def files(text: str) -> dict[str, str]:
    """The Python blocks that stand under a file's name: name -> what the file holds."""
    found = re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return dict(found)
