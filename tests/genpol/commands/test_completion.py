"""The completion script holds every command and option, and bash completes by it."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from test_help import EVERY, options

from genpol import cli
from genpol.commands.completion import script
from genpol.commands.described import options_of
from genpol.commands.table import COMMANDS


@EVERY
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_every_command_and_option_is_in_it(name, shell):
    branch = next(line for line in script(shell).splitlines() if f"    '{name} '*)" in line)
    words = branch.partition("options='")[2].split("'")[0].split()
    known = options_of(options(name)).values()
    assert {flag for option in known for flag in option.flags} <= set(words)


def test_the_command_prints_it(capsys):
    assert cli.main(["completion", "zsh"]) == 0
    out = capsys.readouterr().out
    assert out.rstrip() == script("zsh").rstrip() and out.startswith("autoload")
    assert cli.main(["completion", "csh"]) == 2
    assert "expects one of bash, zsh" in capsys.readouterr().err


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """What bash offers at the end of a line."""
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    path = tmp_path_factory.mktemp("shell") / "genpol.bash"
    path.write_text(script("bash"))

    def complete(*words: str) -> list[str]:
        program = (
            f'source {path}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _genpol; '
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        command = ["bash", "-uc", program, "bash", "genpol", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    return complete


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("tr",), ["train"]),
        (("bench", "w"), ["world-model"]),
        (("train", "--agent", "s"), ["sac"]),
        (("train", "--ag"), ["--agent"]),
        (("train", "--agent", "sac", "--prese"), ["--preset"]),
        (("steer", "--arms", "base", "m"), ["mode"]),  # any number of them
        (("train", "--data", ""), []),  # a file: left to bash
        (("bench", "expo", "--preset", ""), ["faithful", "fast"]),
        (("completion", ""), ["bash", "zsh", "--help"]),
    ],
)
def test_bash_completes(words, offered, completed):
    assert completed(*words) == offered


def test_bash_offers_commands_first_and_options_behind_what_is_complete(completed):
    assert set(completed("")) == {n.split()[0] for n in COMMANDS} | {"--help", "--version"}
    for words in (("train", ""), ("train", "--trust", ""), ("train", "--agent", "sac", "")):
        assert {"--agent", "--steps", "--help"} <= set(completed(*words))
