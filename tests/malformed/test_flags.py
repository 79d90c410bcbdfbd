"""Command lines that cannot be meant: each is refused in a line, and nothing is written."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable

import pytest
from malformed import refusal

from genpol.commands.described import options_of
from genpol.commands.table import COMMANDS
from offline.option_check import numeric_fields

pytestmark = pytest.mark.slow

# Of each command, what reads no further than its inputs, which are not there.
BASE = {
    "demo": [],
    "finetune": ["--model", "nowhere/model"],
    "generate": ["--prompts", "world", "--num-prompts", "1", "--model", "nowhere/model"],
    "collect": ["--env", "metaworld/psh-v3"],
    "data info": ["nowhere.hdf5"],
    "data chunk": ["nowhere.hdf5"],
    "clone": ["--data", "nowhere.hdf5"],
    "value": ["--data", "nowhere.hdf5"],
    "steer": ["--policy", "nowhere", "--value", "nowhere"],
    "train": ["--env", "metaworld/psh-v3"],
    "serve": ["--policy", "nowhere"],
    "bench finetune": ["--model", "nowhere/model"],
    "bench beside": [],
    "bench expo": [],
    "bench decision": [],
    "bench world-model": [],
    "completion": ["bash"],
}
NUMBERS = (
    "nan", "inf", "-inf", "1e999", "-1e999", str(2**64), str(-(2**64)), str(2**128), "", " ", "x",
    "9" * 100_000, "x" * 100_000, "\u0663", "\uff11\uff12", "0x10", "1,5", "1e", "--", "1 2",
    "\x00", "None", "True", "[]", "1e400", "-0x1", "\u221e", "\U0001d7d9",
)  # fmt: skip
FLAGS = (
    "--no-such-option", "--", "---", "-z", "--" + "x" * 100_000, "--=3", "--seed=", "--no-seed",
    "--SEED", "--seed\x00", "--\u0663", "--output=\x00\x00", "-" * 1000, "--config", "--__class__",
)  # fmt: skip
JUNK = (
    "junk",
    "x" * 100_000,
    "\x00",
    "'; rm -rf /",
    "$(true)",
    "../../etc/passwd",
    "\n\n\n",
    "\u202e",
)

Draw = random.Random
Spoilt = tuple[list[str], list[str]]


def options(name: str) -> type:
    entry = COMMANDS[name]
    return getattr(importlib.import_module(entry.module), entry.options)


def bad_number(name: str, draw: Draw) -> list[str]:
    fields = sorted(numeric_fields(options(name)))
    if not fields:
        return junk(name, draw)
    flag, value = f"--{draw.choice(fields).replace('_', '-')}", draw.choice(NUMBERS)
    return [f"{flag}={value}"] if draw.random() < 0.5 else [flag, value]


def repeated(name: str, draw: Draw) -> list[str]:
    fields = sorted(numeric_fields(options(name)))
    return ["--seed", "1"] * ("seed" in fields) + bad_number(name, draw)


def no_value(name: str, draw: Draw) -> list[str]:
    known = [o.flags[0] for o in options_of(options(name)).values() if o.flags and o.metavar]
    single = [flag for flag in known if flag not in ("--known", "--obs-keys", "--image-keys")]
    return [draw.choice(single)] if single else junk(name, draw)


def wrong_choice(name: str, draw: Draw) -> list[str]:
    chosen = [o for o in options_of(options(name)).values() if o.choices and o.flags]
    if not chosen:
        return junk(name, draw)
    return [draw.choice(chosen).flags[0], draw.choice(["", "nothing", "x" * 100_000, "\x00", "1"])]


def unknown(name: str, draw: Draw) -> list[str]:
    return [draw.choice(FLAGS), *draw.choice([[], ["3"], ["x" * 100_000]])]


def junk(name: str, draw: Draw) -> list[str]:
    return [draw.choice(JUNK) for _ in range(draw.choice((2, 3, 40)))]


KINDS: tuple[Callable[[str, Draw], list[str]], ...] = (
    bad_number, bad_number, bad_number, repeated, no_value, wrong_choice, unknown, junk,
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_it_is_refused(name, tmp_path, monkeypatch):
    """24 lines of each command."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(name)
    for i in range(24):
        words = KINDS[i % len(KINDS)](name, draw)
        output = tmp_path / "out"
        end = [] if name in ("data info", "completion", "serve") else ["--output", str(output)]
        if name in ("collect", "data chunk"):
            end = ["--output", str(output / "out.hdf5")]
        position = draw.choice(("front", "back"))
        line = [*words, *BASE[name], *end] if position == "front" else [*BASE[name], *end, *words]
        try:
            refusal([*name.split(), *line], tmp_path)
        except BaseException as error:
            shown = [word[:60] for word in line]
            raise AssertionError(f"{name}: {shown}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize(
    "words",
    [["x" * 100_000], ["trian"], ["bench"], ["bench", "x" * 100_000], ["\x00"], ["data", ""]],
)
def test_no_such_command_is_refused(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(words, tmp_path)
