"""A value as two files: weights (safetensors) and the document value.json.

The document names the file of its weights by their SHA-256. New weights are written first, then the
document is replaced, then older weights are removed. So a kill at any moment leaves a value that is
whole: the old one or the new one. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from diffusion.errors import Diverged, InputError, shown

FORMAT = "genpol image value 1"
DOCUMENT = "value.json"
LARGEST = 16 << 20  # bytes of a document
_M = TypeVar("_M", bound=BaseModel)
_NAME = r"value-([0-9a-f]{16})\.safetensors"


class _Document(BaseModel):
    model_config = ConfigDict(strict=True)

    format: str
    weights: str
    about: dict[str, Any]
    meta: dict[str, Any] = {}


def write_value(
    folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], meta: Mapping[str, Any]
) -> None:
    """Write weights and their document into a folder, which is made if absent.

    Raises:
        OSError: the disk refuses; what was there stays.
        Diverged: a weight is NaN or infinite; nothing is written.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if odd := _odd(whole):
        raise Diverged(f"the value's {odd} is not finite, so it is not saved in {folder}")
    data = safetensors.torch.save(whole)
    name = f"value-{_digest(data)}.safetensors"
    document = {"format": FORMAT, "weights": name, "about": dict(about), "meta": dict(meta)}
    text = json.dumps(document, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / name, data)
    _replace(folder / DOCUMENT, text.encode())
    for old in folder.glob("value-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)


def read_value(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """What the document says of the value ("about") and beside it ("meta"), and the weights.

    Raises:
        InputError: a file is missing, torn or of another format, the two do not belong together,
            or a weight is NaN or infinite.
    """
    document = _read(folder / DOCUMENT)
    named = re.fullmatch(_NAME, document.weights)
    if named is None:
        raise InputError(
            f'{folder / DOCUMENT}: "weights" is "{shown(document.weights)}", which names no file '
            "of a value's weights"
        )
    path = folder / document.weights
    if not path.is_file():
        raise InputError(f"{path} is missing: was the folder copied whole?")
    try:
        data = path.read_bytes()
        if _digest(data) != named[1]:
            raise ValueError("it is not the file that was saved: was it copied whole?")
        tensors = safetensors.torch.load(data)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {shown(error, 160)}") from error
    if odd := _odd(tensors):
        raise InputError(f"{path}: {odd} holds NaN or infinite numbers")
    return document.about, document.meta, tensors


def _read(path: Path) -> _Document:
    if not path.is_file():
        robots = (path.parent / "value.safetensors").is_file()
        hint = "; it is a value of robots, for `genpol steer`" if robots else ""
        raise InputError(
            f'no image value in "{shown(path.parent)}": expected {path.name}, as '
            f"`genpol value --model` leaves it{hint}"
        )
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes, which no value's document has")
        raw = path.read_bytes()
        found = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {shown(error, 160)}") from error
    form = found.get("format") if isinstance(found, dict) else None
    if form != FORMAT:
        raise InputError(f'{path}: expected the format "{FORMAT}", received "{shown(form)}"')
    return checked(_Document, found, path)


def checked(kind: type[_M], found: Any, path: Path) -> _M:
    """Decoded JSON as a pydantic model.

    Raises:
        InputError: an entry is missing or of another type; names the first.
    """
    try:
        return kind.model_validate_json(json.dumps(found))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise InputError(f'{path}: "{shown(at)}": {shown(first["msg"], 160).lower()}') from None


def require_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: Path) -> None:
    """Check that weights are those of a network, before it is allocated.

    Raises:
        InputError: one is missing, unknown, or of another shape or type; names it.
    """
    fault = f"the weights in {folder} do not fit {DOCUMENT} beside them"
    for name in [*expected, *found]:
        if name not in found or name not in expected:
            lacks = "lack" if name not in found else "hold the unknown"
            raise InputError(f"{fault}: they {lacks} tensor {shown(name)}")
        wanted, got = expected[name], found[name]
        if wanted.shape != got.shape or wanted.dtype != got.dtype:
            raise InputError(
                f"{fault}: {shown(name)} is {got.dtype} {tuple(got.shape)}, expected "
                f"{wanted.dtype} {tuple(wanted.shape)}"
            )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _odd(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is not finite."""
    return next((name for name, t in tensors.items() if not t.isfinite().all()), None)


def _replace(path: Path, data: bytes) -> None:
    """Write beside, sync, rename; what a kill left of an earlier attempt is removed."""
    for left in path.parent.glob(f".*.{path.name}"):
        left.unlink(missing_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
