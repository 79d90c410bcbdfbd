"""A model as two files: its weights (safetensors) and a document (JSON) that says what it is.

The document holds the SHA-256 of the weights. A save that is killed between its two renames leaves
new weights and, under a hidden name, the document that belongs to them; `load_model` takes it. So
a folder that is saved over is the old model or the new one, never weights of one beside a document
of the other. Documents of before have no hash and are taken as they are.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from offline.errors import InputError
from offline.files import siblings, write_together
from offline.finite import require_finite, require_loaded_finite
from offline.spec import ActionSpec

HASH = "weights_sha256"
UNFINISHED = "unfinished"  # in `meta` while the run that learns the model has not come to its end


class Described(Protocol):
    """A model of observations and actions."""

    env: str | None
    spec: ActionSpec
    obs_shapes: dict[str, tuple[int, ...]]
    meta: dict[str, Any]


def described(model: Described, architecture: Mapping[str, Any], **first: Any) -> dict[str, Any]:
    """The document of a model of observations and actions, after what `first` says."""
    return {
        **first,
        "env": model.env,
        "spec": model.spec.to_dict(),
        "obs_shapes": {key: list(shape) for key, shape in model.obs_shapes.items()},
        "architecture": dict(architecture),
        "meta": model.meta,
    }


def save_model(
    folder: str | Path, weights: str, model: nn.Module, config: str, document: Mapping[str, Any]
) -> Path:
    """Write a model's state and its document; what was there stays when that fails.

    Args:
        folder: made if absent.
        weights: name of the file of weights.
        model: whose `state_dict` is saved.
        config: name of the document's file.
        document: what JSON can hold.

    Returns:
        The folder.

    Raises:
        OSError: the disk refuses.
        TypeError: JSON cannot hold the document.
        Diverged: a weight is NaN or infinite.
    """
    folder = Path(folder)
    json.dumps(document)  # before anything is written
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    require_finite(tensors, str(folder / weights))
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / weights, folder / config
    for path in paths:
        for stale in siblings(path):  # left by a kill
            stale.unlink(missing_ok=True)
    data = safetensors.torch.save(tensors)
    text = json.dumps({**document, HASH: hashlib.sha256(data).hexdigest()}, indent=2) + "\n"
    write_together({paths[0]: data, paths[1]: text.encode()})
    return folder


def load_model(
    folder: Path, weights: str, config: str, *, kind: str, form: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document and the tensors (on the CPU) that `save_model` wrote. Nothing is unpickled.

    A model whose run is unfinished is loaded with a warning.

    Args:
        folder: of both files.
        weights, config: their names.
        kind: what errors call the model, such as "policy".
        form: what the document's "format" must be.

    Raises:
        InputError: a file is missing or torn, of another format, the two were not saved
            together, or a weight is NaN or infinite.
    """
    for name in (weights, config):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing: was the folder copied whole?")
    try:
        document = json.loads((folder / config).read_text("utf-8"))
        found = document.get("format")
        if found != form:
            raise ValueError(f'its format is {found!r}, not "{form}"')
        data = (folder / weights).read_bytes()
        tensors = safetensors.torch.load(data)
        document = _of(data, document, folder / config)
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read the {kind} in {folder}: {reason}") from error
    if document is None:
        raise InputError(
            f"{folder / weights} does not fit {config} beside it: are they of two models? Weights "
            f'that were changed on purpose load once "{HASH}" is gone from {config}'
        )
    meta = document.get("meta")
    if isinstance(meta, dict) and UNFINISHED in meta:
        warnings.warn(
            f"the run that trains the {kind} in {folder} is unfinished, it has taken "
            f"{str(meta[UNFINISHED])[:80]}: go on with its --resume",
            stacklevel=3,
        )
    require_loaded_finite(tensors, folder / weights)
    return document, tensors


def _of(weights: bytes, document: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The document that belongs to the weights: the one in place, or one that a kill left."""
    digest = hashlib.sha256(weights).hexdigest()
    if document.get(HASH) == digest:
        return document
    for left in siblings(path):
        staged: dict[str, Any] = json.loads(left.read_text("utf-8"))
        if staged.get(HASH) == digest:
            return staged
    return None if HASH in document else document


def fill(model: nn.Module, tensors: Mapping[str, Tensor], weights: Path, config: str) -> None:
    """Give a model the weights of its file.

    Raises:
        InputError: they have other names or shapes than the document led to.
    """
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # names every tensor, over many lines
        raise InputError(
            f"{weights} does not fit {config} beside it: are they of two models?"
        ) from error
