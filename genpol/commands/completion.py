"""`genpol completion`: what the Tab key completes, as a script for a shell."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from genpol.commands.described import Option, options_of
from genpol.commands.table import COMMANDS


@dataclass(frozen=True)
class Completion:
    """Print a script with which a shell completes commands and options.

    Put `source <(genpol completion bash)` into ~/.bashrc, or `source <(genpol completion zsh)` into
    ~/.zshrc behind compinit.
    """

    shell: Annotated[
        tyro.conf.Positional[Literal["bash", "zsh"]], tyro.conf.arg(metavar="bash|zsh")
    ]
    """Shell that reads the script."""


def run(config: Completion) -> None:
    """Print the script."""
    print(script(config.shell))


# `options`: the words that may come next. `choices`: the values of the last option, while they are
# still to come; `last` is empty behind one that takes none. What is in neither is a file name.
SCRIPT = r"""# %(shell)s completion for genpol, made by `genpol completion %(shell)s`
_genpol() {
  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"
  local command="" options="" choices="" said="" last="" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    said+="${COMP_WORDS[i]} "
    case "${COMP_WORDS[i]}" in --*) last="${COMP_WORDS[i]}" ;; esac
  done
  case "$said" in
%(options)s
  esac
  case "$command $last" in
%(choices)s
  esac
  if [ "${current#-}" = "$current" ] && [ -n "$choices" ]; then
    options="$choices"
  elif [ "${current#-}" = "$current" ] && [ -n "$last" ] && [ "$last" = "$previous" ]; then
    options=""
  fi
  COMPREPLY=($(compgen -W "$options" -- "$current"))
}
complete -o default -F _genpol genpol"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"  # zsh then runs the script as bash would


def script(shell: str) -> str:
    """The completion script, which holds every command, option and choice."""
    options, choices = [], []
    for name, entry in COMMANDS.items():
        known = options_of(getattr(importlib.import_module(entry.module), entry.options))
        flags = [flag for option in known.values() for flag in option.flags]
        words = [word for o in known.values() if not o.flags for word in o.choices]
        options.append(_branch(name, [*words, *flags, "--help"]))
        choices += [line for option in known.values() for line in _values(name, option)]
    families: dict[str, list[str]] = {}
    for name in COMMANDS:
        first, _, second = name.partition(" ")
        families.setdefault(first, []).extend([second] if second else [])
    options += [_branch(first, [*rest, "--help"]) for first, rest in families.items() if rest]
    options.append(f"    *) options='{' '.join([*families, '--help', '--version'])}' ;;")
    filled = {"shell": shell, "options": "\n".join(options), "choices": "\n".join(choices)}
    return ZSH * (shell == "zsh") + SCRIPT % filled


def _branch(command: str, words: list[str]) -> str:
    """What may follow a command."""
    return f"    '{command} '*) command='{command}' options='{' '.join(words)}' ;;"


def _values(command: str, option: Option) -> Iterator[str]:
    """What may follow an option: the words of a choice, or nothing, behind a switch."""
    for flag in option.flags:
        begin, words = f"    '{command} {flag}')", " ".join(option.choices)
        if not option.metavar:
            yield f"{begin} last='' ;;"
        elif option.metavar.endswith("..."):  # any number of them
            yield f"{begin} choices='{words}' ;;"
        elif words:
            yield f'{begin} [ "$last" = "$previous" ] && choices=\'{words}\' ;;'
