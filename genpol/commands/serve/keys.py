"""API keys: from a file or the environment, which no other user of the machine can read."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

from genpol.commands.serve.options import Serve
from offline.errors import InputError

SERVER, UPSTREAM = "GENPOL_API_KEY", "GENPOL_UPSTREAM_API_KEY"
_LONGEST = 4096  # bytes of a file with a key


def server_key(config: Serve) -> str | None:
    """The key that clients must send; None without one.

    Raises:
        InputError: a file that cannot be read, or holds no key.
    """
    if config.api_key is not None:
        warnings.warn(
            "every user of this machine can read --api-key in the list of processes: "
            f"pass --api-key-file FILE, or set {SERVER}",
            stacklevel=2,
        )
        return config.api_key
    if config.api_key_file is not None:
        return read_key(config.api_key_file, "--api-key-file")
    return os.environ.get(SERVER) or None


def upstream_key(config: Serve) -> str | None:
    """The key that the other server asks for; None without one.

    Raises:
        InputError: as `server_key`.
    """
    if config.upstream_api_key_file is not None:
        return read_key(config.upstream_api_key_file, "--upstream-api-key-file")
    return os.environ.get(UPSTREAM) or None


def read_key(path: str, flag: str) -> str:
    """The one line of a file. Warns where all users of this machine can read it.

    Raises:
        InputError: it cannot be read, or is no single line of printable characters.
    """
    try:
        with open(Path(path).expanduser(), "rb") as file:
            everybody = os.fstat(file.fileno()).st_mode & stat.S_IROTH
            content = file.read(_LONGEST + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{flag}: cannot read {path[:80]} ({_why(error)})") from error
    key = content.decode("ascii", "replace").strip()
    if len(content) > _LONGEST or not key or not (key.isascii() and key.isprintable()):
        raise InputError(
            f"{flag}: {path[:80]} holds no API key, which is one line of printable ASCII characters"
        )
    if everybody:
        warnings.warn(
            f"{flag}: every user of this machine can read {path[:80]}: chmod 600", stacklevel=2
        )
    return key


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
