"""The front door: `genpol COMMAND --options`. Wires everything; nothing imports it.

Start-up stays well under two seconds because only the requested command's file is imported, and
command files import heavy libraries inside `run`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import tyro

from genpol import __version__

COMMANDS: dict[str, tuple[str, str]] = {  # words on the command line -> (module, dataclass)
    "demo": ("genpol.commands.demo.command", "Demo"),
    "finetune": ("genpol.commands.finetune", "Finetune"),
    "generate": ("genpol.commands.generate", "Generate"),
    "collect": ("genpol.commands.collect", "Collect"),
    "data info": ("genpol.commands.data.info", "DataInfo"),
    "data chunk": ("genpol.commands.data.chunk", "DataChunk"),
    "clone": ("genpol.commands.clone", "Clone"),
    "value": ("genpol.commands.value", "Value"),
    "steer": ("genpol.commands.steer.command", "Steer"),
    "train": ("genpol.commands.train.command", "Train"),
    "serve": ("genpol.commands.serve", "Serve"),
    "bench finetune": ("genpol.commands.bench.finetune", "BenchFinetune"),
    "bench expo": ("genpol.commands.bench.expo", "BenchExpo"),
    "bench world-model": ("genpol.commands.bench.world_model", "BenchWorldModel"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Args:
        argv: the words after `genpol`; `sys.argv[1:]` when None.

    Returns:
        0 when done, 2 for options that do not parse, the error's own `exit_code` for an exception
        that has one (printed as one line, no traceback), 130 when interrupted.

    Raises:
        Any other exception: a bug, which deserves its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(words)
    except SystemExit as leaving:  # tyro: 0 after --help, 2 after a parse error it has printed
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
    if not words or words[0] in ("--help", "-h"):
        print(_overview(COMMANDS))
        return
    for size in (2, 1):
        name = " ".join(words[:size])
        if name in COMMANDS:
            module, options = COMMANDS[name]
            command = importlib.import_module(module)
            arguments = words[size:]
            # A command may say that one option changes what the others are when not given.
            start = {"default": command.defaults(arguments)} if hasattr(command, "defaults") else {}
            config = tyro.cli(
                getattr(command, options), prog=f"genpol {name}", args=arguments, **start
            )
            command.run(config)
            return

    # Not a command: perhaps the first of two words, with or without a wrong second one.
    family = {name: entry for name, entry in COMMANDS.items() if name.split()[0] == words[0]}
    if family and words[1:2] in (["--help"], ["-h"]):
        print(_overview(family))
        return
    from diffusion.errors import InputError, did_you_mean

    given = " ".join(words[: 2 if family else 1])
    raise InputError(f'unknown command "{given}".{did_you_mean(given, family or COMMANDS)}')


def _overview(commands: dict[str, tuple[str, str]]) -> str:
    """The list of commands, each with the first line of its dataclass's docstring."""
    lines = []
    for name, (module, options) in commands.items():
        doc = getattr(importlib.import_module(module), options).__doc__ or ""
        lines.append(f"  {name:<16}{doc.strip().splitlines()[0] if doc.strip() else ''}".rstrip())
    return "\n".join(
        [
            "usage: genpol COMMAND [options]",
            "",
            "Expressive generative policies, and the operators that improve any of them.",
            "",
            "commands:",
            *lines,
            "",
            "`genpol COMMAND --help` lists a command's options; `genpol --version` the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
