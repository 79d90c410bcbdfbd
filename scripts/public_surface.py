"""Write what follows from the tables of public names in the packages' `__init__.py`.

    python -m scripts.public_surface

`PACKAGE/__init__.pyi` tells type checkers where each name is defined, and the list in
docs/PYTHON.md has one line for each: the first sentence of its docstring. A test of the fast suite
fails where either is out of date.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/PYTHON.md"
PACKAGES = ("genpol", "offline", "robots", "diffusion")
BEGIN, END = "<!-- surface -->", "<!-- /surface -->"


def table(package: str) -> dict[str, str]:
    """Public name -> the module that defines it."""
    found: dict[str, str] = importlib.import_module(package)._DEFINED_IN
    return found


def stub(package: str) -> str:
    """The text of `PACKAGE/__init__.pyi`."""
    names = table(package)
    lines = sorted(f"from {module} import {name} as {name}" for name, module in names.items())
    version = ["", "__version__: str"] if package == "genpol" else []
    return "\n".join([*lines, *version]) + "\n"


def summary(package: str, name: str) -> str:
    """The first sentence of a public name's docstring, on one line.

    Raises:
        ValueError: it has none of its own.
    """
    thing = getattr(importlib.import_module(package), name)
    text = inspect.cleandoc(thing.__doc__ or "")
    if not text or text.startswith(f"{name}("):  # what a dataclass writes by itself
        raise ValueError(f"{package}.{name} has no docstring")
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.!])\s", first)[0].rstrip(".:").replace("|", "\\|")


def section() -> str:
    """The list of docs/PYTHON.md, its marks included."""
    lines = [BEGIN]
    for package in PACKAGES:
        lines += ["", f"### {package}", "", "| name | what it is |", "|---|---|"]
        lines += [f"| `{name}` | {summary(package, name)} |" for name in table(package)]
    return "\n".join([*lines, "", END])


def page(text: str) -> str:
    """The page with its list brought up to date."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the page has lost its marks {BEGIN} and {END}")
    return before + section() + after


def main() -> None:
    for package in PACKAGES:
        (ROOT / package / "__init__.pyi").write_text(stub(package), "utf-8")
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
