"""Help shows every option once, by subject, with its default; and what it shows can be typed."""

from __future__ import annotations

import importlib
import re
import shlex
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import pytest

from diffusion.recommended import PUBLISHED, TINY
from genpol import cli
from genpol.agents.config import FAITHFUL, SAC_IMAGINING, SAC_USUAL
from genpol.commands.described import Option, groups, kind, options_of
from genpol.commands.finetune.command import complete
from genpol.commands.finetune.options import Finetune
from genpol.commands.parsing import parse, start
from genpol.commands.table import COMMANDS
from genpol.commands.train.options import Train
from offline.errors import InputError

GROUPED = ("finetune", "steer", "clone", "value", "collect", "serve", "generate", "train")
BENCHES = tuple(name for name in COMMANDS if name.startswith("bench "))
EVERY = pytest.mark.parametrize("name", COMMANDS)


def options(name: str) -> type:
    return getattr(importlib.import_module(COMMANDS[name].module), COMMANDS[name].options)


def help_of(words: str, capsys) -> str:
    assert cli.main([*words.split(), "--help"]) == 0
    return capsys.readouterr().out


def entries(text: str) -> dict[str, str]:
    """The option as it is shown -> its text, from a page of help."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"  (\S.*?)(?:  +(\S.*))?$", line):
            name = match[1]
            found[name] = match[2] or ""
        elif line.startswith(" " * 28) and name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


@EVERY
def test_the_overview_says_what_the_docstring_says(name):
    assert COMMANDS[name].summary == options(name).__doc__.splitlines()[0]
    assert len(COMMANDS[name].summary) <= 78


@EVERY
def test_every_option_is_in_exactly_one_group(name):
    listed = [field for names in groups(options(name)).values() for field in names]
    assert sorted(listed) == sorted(f.name for f in fields(options(name)))


@pytest.mark.parametrize("name", [*GROUPED, *BENCHES])
def test_what_most_people_need_comes_first_and_is_at_most_fifteen(name):
    (subject, first), *others = groups(options(name)).items()
    assert subject == "what most people need" and 4 <= len(first) <= 15
    assert others and all(names for _, names in others)


def test_the_subjects_of_train():
    first, *subjects = groups(Train)
    assert {"agent", "critic", "world model", "evaluation", "run"} <= set(subjects)
    assert {"bounds on values", "observations, environment and reward"} <= set(subjects)


@EVERY
def test_help_shows_every_option_with_its_default_and_no_none(name, capsys):
    text = help_of(name, capsys)
    assert "None" not in text
    assert all(len(line) <= 100 or line.startswith("usage") for line in text.splitlines())
    found = entries(text.split("\n\n", 1)[1])
    for option in options_of(options(name)).values():
        said = found[option.shown]
        assert len(option.text) > 8 and said.startswith(option.text.split()[0]), option.name
        assert re.search(r"\((required|default: [^)].*)\)$", said), option.name
        assert option.text[0].isupper() or option.text[0] in '"`', option.name
        assert option.text.endswith((".", ")")), option.name


def sample(option: Option) -> list[str]:
    """Words that an option takes, by what help shows of its values."""
    words = {"INT": "3", "FLOAT": "0.5", "TEXT": "x", "PATH": "y"}
    shown = [part for part in option.metavar.split() if part != "..."]
    return [words.get(part, part.split("|")[-1]) for part in shown]


def required(known: dict[str, Option]) -> list[str]:
    """What has to be typed."""
    needed = [option for option in known.values() if option.required]
    return [word for option in needed for word in [*option.flags[:1], *sample(option)]]


@EVERY
@pytest.mark.parametrize("which", [0, -1])
def test_every_option_that_help_shows_can_be_typed(name, which, capsys):
    shown = entries(help_of(name, capsys).split("\n\n", 1)[1])
    known = options_of(options(name))
    assert [option.shown for option in known.values() if option.shown not in shown] == []
    words = [
        word
        for option in known.values()
        for word in [*([option.flags[which]] if option.flags else []), *sample(option)]
    ]
    config = parse(options(name), words, "genpol")
    for option in known.values():
        value = getattr(config, option.name)
        if option.metavar:
            values = value if isinstance(value, tuple) else (value,)
            assert [str(v) for v in values] == sample(option)
        else:
            assert value is (which == 0)


@EVERY
def test_typing_the_default_that_help_shows_changes_nothing(name):
    """Defaults are shown as they would be typed, where they are no explanation in words."""
    plain = [f for f in fields(options(name)) if f.default not in (MISSING, None, (), "")]
    known = options_of(options(name))
    words = []
    for field in plain:
        option = known[field.name]
        switch = not option.metavar
        words += shlex.split(option.default if switch else f"{option.flags[0]} {option.default}")
    config = parse(options(name), [*required(known), *words], "genpol")
    for field in plain:
        assert getattr(config, field.name) == field.default, field.name


def test_finetune_shows_both_recommendations_from_their_tables():
    known = options_of(Finetune)
    for name in ("beta", "prompts_per_epoch", "step_weights", "guidance_scale"):
        tiny, other = (
            f"{v:.12g}" if isinstance(v, float) else str(v) for v in (TINY[name], PUBLISHED[name])
        )
        assert known[name].default.startswith(f"{tiny} for tiny, {other} for other models")
    text = known["guidance_scale"].default
    assert text.endswith("for other models, unless the family or objective has its own")
    assert known["epochs"].default == str(TINY["epochs"]) == str(PUBLISHED["epochs"])
    assert known["reward"].default == f"{TINY['reward']} for tiny; other models need it"
    filled = complete(Finetune())
    for name in PUBLISHED:  # what help promises without --model is what a run gets
        first = known[name].default.split(" for tiny, ")[0].split(", unless ")[0]
        value = getattr(filled, name)
        assert type(value)(first) == value, name


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("", {}),
        ("--agent sac", SAC_USUAL | {"offline_fraction": 0.0}),
        ("--agent=sac --world_model mle", SAC_USUAL | SAC_IMAGINING | {"offline_fraction": 0.0}),
        (
            "--agent sac --world-model mle --data x.hdf5",
            SAC_USUAL | SAC_IMAGINING | {"offline_fraction": 0.05},
        ),
        ("--preset faithful", FAITHFUL),
        ("--world-model vagram", {"imagined_fraction": 0.25, "rollouts_per_step": 10}),
        ("--agent sac --resume runs/x", {}),
        ("--agent --nonsense", {}),
    ],
)
def test_help_shows_the_defaults_of_what_is_beside_it(words, shown, capsys):
    known = options_of(Train)
    text = entries(help_of(f"train {words}", capsys))
    expected = replace(Train(), **shown)
    for name, value in options_of(Train, expected).items():
        if name not in ("agent", "world_model", "data", "preset", "resume"):
            assert text[known[name].shown].endswith(f"(default: {value.default})"), name


def test_what_an_agent_recommends_is_the_same_in_python():
    words = "--agent sac --world-model mle --env x --utd 3 --hidden 8 8"
    given = {"agent": "sac", "world_model": "mle", "env": "x", "utd": 3.0, "hidden": (8, 8)}
    config = Train.recommended(**given)
    assert config == parse(Train, words.split(), "genpol train")
    assert config.reward == SAC_USUAL["reward"] and config.utd == 3  # given, so it wins
    assert Train.recommended() == Train()
    faithful = Train.recommended(preset="faithful", subset=3)
    assert faithful.utd == FAITHFUL["utd"] and faithful.subset == 3
    with pytest.raises(InputError, match='no preset "faithfull". Did you mean "faithful"'):
        Train.recommended(preset="faithfull")
    with pytest.raises(TypeError, match="utdd"):
        Train.recommended(utdd=1)


def test_with_resume_only_what_was_given_departs_from_the_plain_defaults():
    config = parse(Train, "--resume runs/x --agent sac".split(), "genpol train")
    assert config == Train(resume=Path("runs/x"), agent="sac")


def test_words_that_cannot_be_read_leave_help_as_it_is():
    assert start(Train, ["--agent", "sca", "-h"], "genpol train") is None
    assert start(Train, ["-h"], "genpol train") is None
    assert start(Train, ["--agent", "sac", "-h"], "genpol train").agent == "sac"


@dataclass(frozen=True)
class Base:
    size: int = 1
    """Size of it."""


@dataclass(frozen=True)
class Few(Base):
    """Few."""

    mode: Literal["a", "b"] | None = None
    """How it is done, in a text that goes
    on. Default: as it was done before."""
    sizes: tuple[float, float] = (1e-4, 2.0)
    """Two."""
    plain: str = ""


def test_options_are_read_from_fields_and_the_docstrings_below_them():
    found = options_of(Few)
    assert list(found) == ["size", "mode", "sizes", "plain"]
    assert found["size"].text == "Size of it." and found["size"].default == "1"
    mode = found["mode"]
    assert mode.text == "How it is done, in a text that goes on."
    assert (mode.default, mode.metavar, mode.choices) == (
        "as it was done before", "a|b", ("a", "b"),
    )  # fmt: skip
    assert found["sizes"].shown == "--sizes FLOAT FLOAT"
    assert found["sizes"].default == "0.0001 2"
    assert found["plain"].text == "" and found["plain"].default == ""


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        (int | None, "INT"),
        (Path, "PATH"),
        (bool, ""),
        (tuple[int, ...], "INT ..."),
        (tuple[Literal["a", "b"], ...], "a|b ..."),
        (tuple[int, int], "INT INT"),
        (Literal["x", "y"] | None, "x|y"),
    ],
)
def test_types_are_plain_words(hint, shown):
    assert kind(hint) == shown


@pytest.mark.parametrize(("columns", "widest"), [("300", 100), ("72", 72), ("20", 60)])
def test_lines_fit_the_terminal(columns, widest, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    lines = help_of("train", capsys).splitlines()
    folded = [line for line in lines if line.startswith(" " * 28)]
    assert widest - 20 < max(map(len, folded)) <= widest


def test_colour_only_on_a_terminal(monkeypatch, capsys):
    assert "\033" not in help_of("train", capsys)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[1magent:\033[0m" in help_of("train", capsys)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in help_of("train", capsys)
