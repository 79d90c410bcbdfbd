"""Seeded malformed inputs, and what the command line must make of them.

`json_variants` and `byte_variants` spoil something that is good. `refusal` runs a command on it in
this process and asserts what holds of every refusal: exit code 2, no traceback, at most three lines
of bounded length, and no file left behind.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from offline.errors import InputError

LONGEST_LINE = 600
# What stands where something else belongs. Not JSON's own: NaN and Infinity, as Python reads them.
LEAVES: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, 1e308, float("nan"), float("inf"), "", "text", "x" * 100_000, "\x00",
    "../../etc/passwd", [], [[]], {}, {"a": None}, [1, "two", None], [[1, 2], [3]],
)  # fmt: skip


def nested(depth: int = 1000) -> str:
    """JSON text, lists inside lists."""
    return "[" * depth + "]" * depth


def json_variants(document: Any, seed: int, count: int) -> Iterator[str]:
    """Texts that are `document` with one thing spoilt, or no JSON of its kind at all."""
    draw = random.Random(seed)
    whole = ["", "null", "[]", "3", '"text"', "{", nested(), '{"a": ' * 1000 + "1" + "}" * 1000]
    for i in range(count):
        if i < len(whole):
            yield whole[i]
            continue
        spoilt = copy.deepcopy(document)
        paths = list(_paths(spoilt))
        path = draw.choice(paths)
        parent = _at(spoilt, path[:-1])
        kind = draw.randrange(4)
        if kind == 0 and isinstance(parent, dict):
            del parent[path[-1]]
        elif kind == 1 and isinstance(parent, dict):
            parent[draw.choice(["x" * 5000, "", "\x00", "/", "__class__"])] = parent.pop(path[-1])
        else:
            parent[path[-1]] = draw.choice(LEAVES)
        text = json.dumps(spoilt)
        if kind == 3 and draw.random() < 0.3:
            text = text[: draw.randrange(len(text))]  # torn
        yield text


def byte_variants(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """`data` torn, empty, with bytes changed, repeated or put in."""
    draw = random.Random(seed)
    for i in range(count):
        spoilt = bytearray(data)
        if i == 0:
            spoilt.clear()
        elif i % 4 == 1:
            del spoilt[draw.randrange(len(spoilt)) :]
        elif i % 4 == 2:
            for _ in range(draw.randrange(1, 9)):
                spoilt[draw.randrange(len(spoilt))] = draw.randrange(256)
        elif i % 4 == 3:
            at = draw.randrange(len(spoilt))
            spoilt[at:at] = draw.randbytes(draw.randrange(1, 64))
        else:
            at = draw.randrange(len(spoilt))
            del spoilt[at : at + draw.randrange(1, 64)]
        yield bytes(spoilt)


def run_command(words: Sequence[str]) -> tuple[int, str]:
    """Exit code and what was said; an exception that would be a traceback goes through."""
    from genpol.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(list(words))
    return code, said.getvalue()


def refusal(words: Sequence[str], output: Path | None = None) -> str:
    """Run a command that must refuse its input; returns what it said.

    Args:
        words: of the command line, without `genpol`.
        output: where it would write; there must be nothing in it afterwards.
    """
    code, said = run_command(words)
    _check_refusal(code, said, output)
    return said


def judged(words: Sequence[str], harmful: bool | None, output: Path, what: str) -> None:
    """Run a command on something spoilt, and hold it to what was spoilt.

    Args:
        words: of the command line, without `genpol`.
        harmful: it must be refused (True), must work (False), or either (None).
        output: where it would write; a refusal leaves nothing in it.
        what: was spoilt, for a failure.
    """
    try:
        code, said = run_command(words)
        if code:
            assert harmful is not False, said[-500:]
            _check_refusal(code, said, output)
        else:
            assert not harmful, "it was not refused"
    except BaseException as error:
        error.add_note(f"{what[:300]}: genpol {' '.join(words)[:300]}")
        raise


def refused(load: Callable[[], object], harmful: bool | None, what: str) -> None:
    """The same of a call in Python, whose refusal is an InputError of one bounded line."""
    try:
        load()
    except InputError as error:
        assert harmful is not False, (what, error)
        assert "\n" not in str(error) and len(str(error)) <= LONGEST_LINE, (what, str(error)[:999])
    except BaseException as error:
        error.add_note(what[:300])
        raise
    else:
        assert not harmful, what


def _check_refusal(code: int, said: str, output: Path | None) -> None:
    assert code == 2, (code, said[-2000:])
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    assert len(errors) == 1 and lines[-1] == errors[0], lines
    assert len(errors[0]) <= LONGEST_LINE, errors[0][:1000]
    assert "Traceback" not in said
    if output is not None:
        left = [path for path in output.rglob("*") if path.is_file()] if output.exists() else []
        assert not left, left


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries: Any = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    for key, entry in entries:
        yield (*at, key)
        yield from _paths(entry, (*at, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value
