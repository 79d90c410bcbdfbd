"""The front door, with a small command of its own standing in the table."""

from __future__ import annotations

import subprocess
import sys

import pytest

from diffusion.errors import InputError
from genpol import __version__, cli
from genpol.commands.table import Command

FAKE = '''
"""A command for the tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion.errors import InputError


@dataclass(frozen=True)
class Paint:
    """Paint the fence.

    More about fences.
    """

    output: Path
    """where the fence stands"""
    images_per_prompt: int = 4
    """how many planks for each prompt"""
    sizes: tuple[int, int] = (1, 2)
    """how high and wide"""
    colour: Literal["red", "green"] = "red"
    """of the paint"""
    fail: str = ""
    """which way to fail"""


def run(config: Paint) -> None:
    if config.fail == "input":
        raise InputError("fence not found:\\n  pass another --output")
    if config.fail == "bug":
        raise ZeroDivisionError("a bug")
    if config.fail == "interrupt":
        raise KeyboardInterrupt
    print(f"painted {config.output} with {config.images_per_prompt}")
'''


@pytest.fixture(autouse=True)
def commands(monkeypatch, tmp_path):
    """A table of three commands; "broken" names a module that does not exist."""
    (tmp_path / "fake_paint.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fake_paint", raising=False)
    table = {
        "paint": Command("fake_paint", "Paint", "Paint the fence."),
        "bench paint": Command("fake_paint", "Paint", "Paint the fence."),
        "broken": Command("no_such_module", "Broken", "Break."),
    }
    monkeypatch.setattr(cli, "COMMANDS", table)
    return table


def test_options_reach_the_command_and_only_its_module_is_imported(capsys):
    assert cli.main(["paint", "--output", "runs/x", "--images-per-prompt", "7"]) == 0
    assert capsys.readouterr().out == "painted runs/x with 7\n"


def test_a_command_of_two_words(capsys):
    assert cli.main(["bench", "paint", "--output", "b"]) == 0
    assert capsys.readouterr().out == "painted b with 4\n"


def test_the_overview_lists_each_command_and_imports_none(capsys):
    for words in ([], ["--help"], ["-h"]):
        assert cli.main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert "  paint              Paint the fence." in lines
        assert "  bench paint        Paint the fence." in lines
        assert "  broken             Break." in lines
    assert cli.main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    assert "  bench paint " in out and "  paint " not in out


def test_help_of_a_command_shows_field_docstrings(capsys):
    assert cli.main(["paint", "--help"]) == 0
    out = capsys.readouterr().out
    assert "genpol paint" in out
    assert "--images-per-prompt INT" in out and "planks for each prompt" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pant"], 'unknown command "pant". Did you mean "paint"?'),
        (["zzz"], 'unknown command "zzz". Known: paint, bench paint, broken.'),
        (["--output", "x"], 'unknown command "--output". Known: paint, bench paint, broken.'),
        (["bench"], 'unknown command "bench". Did you mean "bench paint"?'),
        (["bench", "pant"], 'unknown command "bench pant". Did you mean "bench paint"?'),
    ],
)
def test_an_unknown_command_exits_2_with_a_suggestion(words, said, capsys):
    assert cli.main(words) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--output is needed; `genpol paint --help` lists the options."),
        (
            ["--output", "x", "--images-per-promt", "3"],
            'unknown option --images-per-promt. Did you mean "--images-per-prompt"? '
            "`genpol paint --help` lists the options.",
        ),
        (
            ["--outptu=x"],
            'unknown option --outptu. Did you mean "--output"? '
            "`genpol paint --help` lists the options.",
        ),
        (
            ["--output", "x", "--images-per-prompt", "many"],
            '--images-per-prompt expects a whole number; received "many".',
        ),
        (
            ["--output", "x", "--images-per-prompt"],
            "--images-per-prompt expects a whole number; `genpol paint --help` lists the options.",
        ),
        (
            ["--output", "x", "y"],
            '"y" follows no option that takes it; `genpol paint --help` lists the options.',
        ),
        (
            ["--output", "x", "--sizes", "1", "b"],
            '--sizes expects two whole numbers; received "1 b".',
        ),
        (
            ["--output", "x", "--colour", "gren"],
            '--colour expects one of red, green; received "gren". Did you mean "green"?',
        ),
    ],
)
def test_options_that_do_not_parse_are_one_line_and_exit_2(words, said, capsys):
    assert cli.main(["paint", *words]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_tyro_without_that_hook_prints_its_own_message(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro._errors", None)  # importing it fails
    assert cli.main(["paint", "--output", "x", "--images-per-promt", "3"]) == 2
    err = capsys.readouterr().err
    assert "--images-per-promt" in err and "Traceback" not in err and len(err.splitlines()) <= 12


def test_help_that_is_read_through_a_closed_pipe_is_no_error():
    source = "import sys; from genpol.cli import main; sys.exit(main(['train', '--help']))"
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_an_error_with_an_exit_code_is_one_line(capsys):
    assert cli.main(["paint", "--output", "x", "--fail", "input"]) == 2
    assert capsys.readouterr().err == "error: fence not found: pass another --output\n"


def test_the_exit_code_is_the_errors_own(capsys, monkeypatch):
    monkeypatch.setattr(InputError, "exit_code", 7)
    assert cli.main(["paint", "--output", "x", "--fail", "input"]) == 7


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.main(["paint", "--output", "x", "--fail", "bug"])


def test_an_interrupt_is_130(capsys):
    assert cli.main(["paint", "--output", "x", "--fail", "interrupt"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"genpol {__version__}\n"


@pytest.mark.parametrize("module", ["genpol", "genpol.cli"])
def test_as_a_module_the_exit_code_is_the_processes(module):
    done = subprocess.run([sys.executable, "-m", module, "zzz"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith('error: unknown command "zzz".')
    assert len(done.stderr.splitlines()) == 1
