"""The front door: `genpol COMMAND --options`. Wires everything; nothing imports it.

Start-up takes a fraction of a second: the list of commands imports none of them, help imports the
requested command's file alone, and command files import heavy libraries inside `run`.
"""

from __future__ import annotations

import errno
import importlib
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffusion.errors import InputError, did_you_mean, shown
from genpol import __version__
from genpol.commands.help import command_help, overview
from genpol.commands.parsing import HELP, one_line, parse, start
from genpol.commands.streams import unbroken_streams
from genpol.commands.table import COMMANDS
from genpol.runs.interrupts import Interrupted, leaving_at_once
from genpol.runs.several import one_voice, speaks


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Args:
        argv: the words after `genpol`; `sys.argv[1:]` when None.

    Returns:
        0 when the command has done all that it was asked for. What stops before that: an error's
        own `exit_code` for an exception that has one (printed as one line, no traceback; 2 for
        what cannot be read or used), 130 for Ctrl-C, 143 for SIGTERM, 129 for a closed terminal.

    Raises:
        Any other exception: a bug, which deserves its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with unbroken_streams(), one_voice(), leaving_at_once() as signals:
        try:
            _run(words)
        except SystemExit as leaving:  # tyro, of an error that it has printed itself
            return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except Interrupted as stopped:
            print(stopped)
            return stopped.exit_code
        except KeyboardInterrupt as interrupt:
            if speaks():
                print("interrupted", file=sys.stderr)
            return getattr(interrupt, "exit_code", 130)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                error = InputError(f'no file has such a name: it is too long: "{error.filename}"')
            code = getattr(error, "exit_code", None)
            if isinstance(code, int):
                if speaks(error):
                    print("error: " + one_line(error), file=sys.stderr)
                return code
            if signals:  # a library made another exception of the signal's
                print("interrupted", file=sys.stderr)
                return 128 + signals[-1]
            raise
    return 0


def _run(words: list[str]) -> None:
    if words[:1] == ["--version"]:
        print(f"genpol {__version__}")
        return
    if not words or words[0] in HELP:
        print(overview(COMMANDS))
        return
    for size in (2, 1):
        name = " ".join(words[:size])
        if name in COMMANDS:
            command = importlib.import_module(COMMANDS[name].module)
            options = getattr(command, COMMANDS[name].options)
            prog, arguments = f"genpol {name}", words[size:]
            if any(word in HELP for word in arguments):
                print(command_help(prog, options, start(options, arguments, prog)))
            else:
                _work(command.run, parse(options, arguments, prog))
            return

    # Not a command: perhaps the first of two words, with or without a wrong second one.
    family = {name: entry for name, entry in COMMANDS.items() if name.split()[0] == words[0]}
    if family and words[1:2] and words[1] in HELP:
        print(overview(family))
        return
    given = " ".join(words[: 2 if family else 1])[:80]
    raise InputError(f'unknown command "{given}".{did_you_mean(given, family or COMMANDS)}')


def _work(command: Callable[[Any], None], options: Any) -> None:
    """Run a command; warnings are lines. `sys.exit` in code of the user's, which a command calls,
    is no way to end it.

    Raises:
        InputError: in place of SystemExit, whatever its code; says where it was raised.
    """
    before, warnings.formatwarning = warnings.formatwarning, _warning
    try:
        command(options)
    except SystemExit as leaving:
        frames = traceback.extract_tb(leaving.__traceback__)
        # wandb puts a function of its own in place of sys.exit.
        theirs = [frame for frame in frames if "wandb" not in Path(frame.filename).parts]
        place = (theirs or frames)[-1]
        raise InputError(
            f"the command was ended by sys.exit({shown(leaving.code)}) in {place.name}, "
            f"{place.filename}:{place.lineno}: code that a run calls returns, or raises an error "
            "that says what is wrong"
        ) from leaving
    finally:
        warnings.formatwarning = before


def _warning(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> str:
    name = "" if category is UserWarning else f"{category.__name__}: "
    return f"warning: {name}{message}\n"


if __name__ == "__main__":
    sys.exit(main())
