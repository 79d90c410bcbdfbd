"""Whether a family fits a pipeline, and which sizes its images may have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from diffusion.errors import InputError, listed, shown
from diffusion.families.family import Family

# All that is asked of a family somewhere, whether it is a subclass of `Family` or not.
MEMBERS = tuple(name for name in vars(Family) if not name.startswith("_"))


def check_family(found: Any, name: str) -> type[Family]:
    """`found`, if it can be a family.

    Raises:
        InputError: it is no class, or lacks a member.
    """
    if not isinstance(found, type):
        raise InputError(f'family "{name}" is a {type(found).__name__}: expected a class')
    kind: Any = found
    missing = [member for member in MEMBERS if not hasattr(kind, member)]
    given = [m for m in ("encode", "call") if getattr(kind, m, None) is getattr(Family, m)]
    if missing or given:
        raise InputError(
            f'family "{name}" defines no {listed(missing or given)}: derive it from '
            "diffusion.Family and define encode and call (docs/EXTENDING.md)"
        )
    targets = kind.lora_targets
    fits = isinstance(targets, dict) and all(_names(targets.get(k)) for k in ("attention", "all"))
    if not fits:
        raise InputError(
            f'family "{name}": lora_targets must hold layer names under "attention" and "all", '
            f"received {shown(targets)}"
        )
    return kind


def _names(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str) and bool(list(value))


def check_pipeline(kind: type[Family], pipe: Any) -> None:
    """Raise InputError where a pipeline has not what its family needs for training."""
    found, what = getattr(pipe, kind.denoiser_name, None), f"a {type(pipe).__name__}"
    if not isinstance(found, torch.nn.Module):
        raise InputError(
            f'family {kind.__name__} trains "{kind.denoiser_name}", and {what} has no such network'
        )


def check_size(family: Family) -> None:
    """Raise InputError for a height or width that the pipeline's networks cannot draw."""
    step, most = family.multiple, family.largest
    for option, size in (("--height", family.height), ("--width", family.width)):
        if size % step:
            raise InputError(
                f"{option} {size} is no multiple of {step}, which {type(family.pipe).__name__} "
                f"needs; {_near(size, step)}"
            )
        if most is not None and size > most:
            raise InputError(
                f"{option} {size} is above {most}, the largest that {type(family.pipe).__name__} "
                "has places for"
            )


def smaller(family: Family, resolution: int) -> Family:
    """The same family for images of that shorter side and the same shape.

    Raises:
        InputError: a side would be no whole number, or none that the pipeline can draw.
    """
    short, step = min(family.height, family.width), family.multiple
    sides = []
    for size in (family.height, family.width):
        side, rest = divmod(size * resolution, short)
        if rest or side % step:
            made = f"{size * resolution / short:g}"
            raise InputError(
                f"--train-resolution {resolution} makes images of {family.height} x "
                f"{family.width} pixels {made} pixels along a side, and "
                f"{type(family.pipe).__name__} needs multiples of {step}; "
                f"{_near(resolution, step)}"
            )
        sides.append(side)
    small = type(family)(
        family.pipe,
        height=sides[0],
        width=sides[1],
        max_sequence_length=family.max_sequence_length,
    )
    check_size(small)
    return small


def _near(size: int, step: int) -> str:
    low = size // step * step
    return f"{low} and {low + step} are near" if low else f"{step} is the smallest"
