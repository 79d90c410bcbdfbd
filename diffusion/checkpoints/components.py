"""The networks of a pipeline's folder, read one by one, and what their files lack or hold beyond.

The libraries load a file that lacks tensors all the same, with random ones in their place, and only
log it. Here that is an error; tensors of no layer are a warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffusion.checkpoints.index import UNUSED, Checkpoint
from diffusion.errors import InputError, listed, shown

# Buffers that old files store and no layer has any more.
HARMLESS = re.compile(r"(^|\.)position_ids$")
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model|pytorch_model)"
    r"(?:\.(?P<variant>[\w]+))?(?:-\d{5}-of-\d{5})?(?:\.(?P<old>[\w]+))?\.(?P<kind>safetensors|bin)"
)
# What the libraries log while they load: of settings, and of tensors.
SETTINGS = (
    re.compile(r"The config attributes .* are not expected"),
    re.compile(r"Expected types for"),
)
TENSORS = (
    re.compile(r"were not used when initializing"),
    re.compile(r"newly initialized"),
)

Say = Callable[[str], None]


def variants(files: list[str], part: str) -> dict[str | None, set[str]]:
    """Variants of a part's weights -> the kinds of their files; None is the plain one."""
    found: dict[str | None, set[str]] = {}
    for name in files:
        folder, _, file = name.rpartition("/")
        if folder == part and (match := WEIGHTS.fullmatch(file)):
            variant = match["variant"] or match["old"]
            found.setdefault(variant, set()).add(match["kind"])
    return found


def chosen_variants(found: Checkpoint, variant: str | None, parts: list[str]) -> dict[str, Any]:
    """The variant to read of each part that has weights: the one asked for, else the plain one.

    Raises:
        InputError: there is none of it, or a part's only weights are of another kind.
    """
    there: dict[str, set[str | None]] = {}
    for part in parts:
        kinds = variants(found.files, part)
        if kinds and not any("safetensors" in held for held in kinds.values()):
            raise InputError(
                f'"{found.name}" holds the weights of its {part} as a pickle (.bin) only, which '
                "can run code when it is opened; save the pipeline as safetensors first"
            )
        if kinds:
            there[part] = {one for one, held in kinds.items() if "safetensors" in held}
    known = sorted({str(one) for held in there.values() for one in held if one is not None})
    if variant is not None and there and variant not in known:
        have = f"there is {listed(known)}" if known else "its weights have no variants"
        raise InputError(f'"{found.name}" has no weights of --variant {shown(variant)}: {have}')
    chosen: dict[str, Any] = {}
    for part, held in there.items():
        chosen[part] = variant if variant in held else None
        if chosen[part] not in held:
            only = sorted(str(one) for one in held)
            remedy = f"--variant {only[0]}" if len(only) == 1 else "--variant with one of them"
            raise InputError(
                f'"{found.name}" holds the weights of its {part} as {listed(only)} only; '
                f"pass {remedy}"
            )
    return chosen


def networks(found: Checkpoint) -> list[str]:
    """The parts that are networks and are called."""
    import diffusers

    pipeline: Any = getattr(diffusers, found.class_name, None)
    takes = pipeline._get_signature_keys(pipeline)[0] if pipeline else found.parts
    named = [part for part in found.parts if part in takes and part not in UNUSED]
    kinds = {part: found.component(part) for part in named}
    return [p for p, kind in kinds.items() if kind and issubclass(kind, torch.nn.Module)]


def load_networks(
    found: Checkpoint,
    folder: Path,
    parts: list[str],
    *,
    dtype: torch.dtype,
    variant: str | None,
    say: Say,
) -> dict[str, torch.nn.Module]:
    """Read networks from the folder that holds their weights.

    Raises:
        InputError: a file is torn, does not fit, or lacks tensors.
    """
    chosen = chosen_variants(found, variant, parts)
    if variant is not None and (plain := [part for part, pick in chosen.items() if pick is None]):
        say(
            f'warning: "{found.name}" has no {variant} weights of its {listed(plain)}; the plain '
            "ones are read"
        )
    with heard(say, SETTINGS):
        return {p: _network(found, folder, p, dtype, chosen.get(p), say) for p in parts}


def _network(
    found: Checkpoint,
    folder: Path,
    part: str,
    dtype: torch.dtype,
    variant: str | None,
    say: Say,
) -> torch.nn.Module:
    kind: Any = found.component(part)
    given = "torch_dtype" if found.parts[part][0] == "diffusers" else "dtype"
    try:
        network, info = kind.from_pretrained(
            folder / part,
            variant=variant,
            use_safetensors=True,
            output_loading_info=True,
            **{given: dtype},
        )
    except Exception as error:  # a torn or foreign file fails in as many ways as it has bytes
        raise InputError(
            f'cannot load pipeline "{found.name}": its {part}: {shown(error, 200)}'
        ) from error
    lacking = _names(info.get("missing_keys")) + _names(info.get("mismatched_keys"))
    if lacking:
        raise InputError(
            f'cannot load pipeline "{found.name}": the weights of its {part} lack {len(lacking)} '
            f"tensors, which would be random ({_few(lacking)}): the file is incomplete, or "
            f"{part}/config.json is of another model"
        )
    beyond = [name for name in _names(info.get("unexpected_keys")) if not HARMLESS.search(name)]
    if beyond:
        say(
            f'warning: the {part} of "{found.name}" has no layer for {len(beyond)} tensors of its '
            f"file, which are left out ({_few(beyond)})"
        )
    return network


def _names(keys: Any) -> list[str]:
    return sorted(str(key[0] if isinstance(key, tuple | list) else key) for key in keys or ())


def _few(names: list[str]) -> str:
    more = f", and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(shown(name) for name in names[:3])}{more}"


@contextmanager
def heard(say: Say, of: Sequence[re.Pattern[str]] = SETTINGS + TENSORS) -> Iterator[None]:
    """Pass on what diffusers and transformers log of lost settings and tensors, one line each.

    Their other messages are as silent, or as loud, as the user has set them.
    """
    ears = _Ears(say, of)
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    before = [(one, one.level, list(one.handlers)) for one in loggers]
    for one, level, handlers in before:
        quiet = level > logging.WARNING
        one.handlers = [ears] if quiet else [*handlers, ears]
        one.setLevel(min(level or logging.WARNING, logging.WARNING))
    try:
        yield
    finally:
        for one, level, handlers in before:
            one.setLevel(level)
            one.handlers = handlers


class _Ears(logging.Handler):
    def __init__(self, say: Say, of: Sequence[re.Pattern[str]]) -> None:
        super().__init__(logging.WARNING)
        self.say, self.of, self.said = say, of, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text not in self.said and any(one.search(text) for one in self.of):
            self.said.add(text)
            self.say(f"warning: {record.name.split('.')[0]} says: {shown(text, 240)}")
