"""The front door: `genpol COMMAND --options`. Wires everything; nothing imports it.

Start-up takes a fraction of a second: the list of commands imports none of them, help imports the
requested command's file alone, and command files import heavy libraries inside `run`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from diffusion.errors import InputError, did_you_mean
from genpol import __version__
from genpol.commands.help import command_help, overview
from genpol.commands.parsing import HELP, parse, start
from genpol.commands.table import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Args:
        argv: the words after `genpol`; `sys.argv[1:]` when None.

    Returns:
        0 when done, an error's own `exit_code` for an exception that has one (printed as one line,
        no traceback; 2 for what cannot be read or used), 130 when interrupted.

    Raises:
        Any other exception: a bug, which deserves its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(words)
    except SystemExit as leaving:  # tyro, of an error that it has printed itself
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            raise
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return code
    return 0


def _run(words: list[str]) -> None:
    if words[:1] == ["--version"]:
        print(f"genpol {__version__}")
        return
    if not words or words[0] in HELP:
        _show(overview(COMMANDS))
        return
    for size in (2, 1):
        name = " ".join(words[:size])
        if name in COMMANDS:
            command = importlib.import_module(COMMANDS[name].module)
            options = getattr(command, COMMANDS[name].options)
            prog, arguments = f"genpol {name}", words[size:]
            if any(word in HELP for word in arguments):
                _show(command_help(prog, options, start(options, arguments, prog)))
            else:
                command.run(parse(options, arguments, prog))
            return

    # Not a command: perhaps the first of two words, with or without a wrong second one.
    family = {name: entry for name, entry in COMMANDS.items() if name.split()[0] == words[0]}
    if family and words[1:2] and words[1] in HELP:
        _show(overview(family))
        return
    given = " ".join(words[: 2 if family else 1])
    raise InputError(f'unknown command "{given}".{did_you_mean(given, family or COMMANDS)}')


def _show(text: str) -> None:
    """Print help; whoever reads it through a pipe may close it early."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush


if __name__ == "__main__":
    sys.exit(main())
