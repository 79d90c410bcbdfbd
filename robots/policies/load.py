"""Other people's policies by name: what `--policy` accepts besides a folder of our own.

robomimic:FILE                      a robomimic checkpoint (pickled: needs --trust)
octo:DIR[?option=value&...]         an Octo checkpoint, see robots/policies/octo.py
lerobot:DIR[?option=value&...]      a LeRobot checkpoint, see robots/policies/lerobot.py
ws://HOST:PORT                      a server of the openpi protocol (also wss://)
module:name                         any callable, see robots/policies/callable_policy.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from offline.errors import InputError, did_you_mean
from offline.finite import require_loaded_finite
from offline.spec import ActionSpec
from offline.types import Policy

FORMS = "robomimic:FILE, octo:DIR, lerobot:DIR, module:name, ws://host:port"
PREFIXES = ("robomimic", "octo", "lerobot", "ws", "wss")
CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_black_box(text: str) -> bool:
    """Whether `--policy` names someone else's policy, rather than a folder of ours."""
    return ":" in text and not Path(text).exists()


def load_black_box(
    text: str,
    *,
    trust: bool = False,
    env_spec: ActionSpec | None = None,
    action_chunk: int | None = None,
    language: str | None = None,
    device: str | None = None,
) -> Policy:
    """Someone else's policy by name, such as "robomimic:FILE", "octo:DIR" or "module:function".

    Args:
        text: what `--policy` was given.
        trust: whether pickled files may be read; they can run any code.
        env_spec: the environment's actions: bounds, names, gripper.
        action_chunk: actions proposed and executed together; the policy's own when None.
        language: the instruction, for policies that take one.
        device: where robomimic's and LeRobot's networks compute; default the CPU, and a GPU where
            there is one for LeRobot's. JAX and other servers have their own.

    Raises:
        InputError: unknown form, missing file or library, or a policy that does not fit.
    """
    prefix, separator, rest = text.partition(":")
    if not separator:
        raise InputError(f'"{text}" is not a folder here; a policy is a folder or {FORMS}')
    if prefix in ("ws", "wss"):
        if not rest.startswith("//"):
            raise InputError(f'a server is {prefix}://host:port, received "{text}"')
        from robots.serving.client import RemotePolicy

        return RemotePolicy.connect(text, env_spec=env_spec, chunk=action_chunk, prompt=language)
    if prefix == "robomimic":
        path = _existing(rest, "robomimic", file=True)
        from robots.policies.robomimic import RobomimicPolicy

        policy = RobomimicPolicy.load(
            path,
            trust=trust,
            env_spec=env_spec,
            action_chunk=action_chunk,
            device=device or "cpu",
        )
        _require_finite(policy.algo.nets, text)
        return policy
    if prefix in ("octo", "lerobot"):
        folder, options = parse_options(rest)
        if not folder.startswith("hf://"):  # their own loaders download these
            folder = str(_existing(folder, prefix, file=False))
        if prefix == "lerobot":
            from robots.policies.lerobot import LeRobotPolicy

            loaded = LeRobotPolicy.load(
                folder.removeprefix("hf://"),
                env_spec=env_spec,
                action_chunk=action_chunk,
                language=language,
                options=options,
                device=device,
            )
            _require_finite(loaded.policy, text)
            return loaded
        try:
            from robots.policies.octo import load_octo
        except ImportError as error:
            raise InputError(
                f'an Octo policy needs {error.name}: pip install "genpol[octo]"'
            ) from error
        return load_octo(
            folder, env_spec=env_spec, action_chunk=action_chunk, language=language, options=options
        )
    if CALLABLE.fullmatch(text):
        from robots.policies.callable_policy import CallablePolicy

        try:
            return CallablePolicy.load(text, env_spec=env_spec, action_chunk=action_chunk)
        except InputError as error:
            if isinstance(error.__cause__, ModuleNotFoundError) and (hint := _prefix_hint(prefix)):
                raise InputError(f"{error}.{hint}") from error
            raise
    hint = _prefix_hint(prefix) or f" A policy is a folder or {FORMS}."
    raise InputError(f'"{text}" names no policy.{hint}')


def _require_finite(network: Any, text: str) -> None:
    """Check what is learnt; statistics beside it may be infinite where a library leaves them out.

    Raises:
        InputError: a weight is NaN or infinite.
    """
    if (parameters := getattr(network, "named_parameters", None)) is not None:
        require_loaded_finite({name: value.detach() for name, value in parameters()}, text)


def parse_options(text: str) -> tuple[str, dict[str, str]]:
    """ "DIR?model=a.b:C&window=1" -> ("DIR", {"model": "a.b:C", "window": "1"}).

    Raises:
        InputError: an option without a value, or given twice.
    """
    path, _, query = text.partition("?")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, separator, value = part.partition("=")
        if not (key and separator and value):
            raise InputError(f'expected ?option=value&option=value after {path}, received "{part}"')
        if key in options:
            raise InputError(f'the option "{key}" is given twice: {text}')
        options[key] = unquote(value)
    return path, options


def _prefix_hint(prefix: str) -> str:
    hint = did_you_mean(prefix, PREFIXES)
    return hint if "Did you mean" in hint else ""


def _existing(text: str, prefix: str, *, file: bool) -> Path:
    path = Path(os.path.expanduser(text))
    if file and path.is_file() or not file and path.is_dir():
        return path
    kind = "file" if file else "folder"
    if not text:
        raise InputError(f"{prefix}: names no {kind}: {prefix}:{'FILE' if file else 'DIR'}")
    if path.exists():
        raise InputError(f"{prefix}:{text} is not a {kind}")
    raise InputError(f"{prefix}:{text}: there is no such {kind}")
