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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import safetensors.torch
import torch
from annotated_types import Ge
from safetensors import SafetensorError
from torch import Tensor, nn

from offline.documents import read_document
from offline.errors import InputError, shown
from offline.files import siblings, write_together
from offline.finite import require_finite, require_loaded_finite
from offline.spec import ActionSpec

HASH = "weights_sha256"
UNFINISHED = "unfinished"  # in `meta` while the run that learns the model has not come to its end
Size = Annotated[int, Ge(0)]
LARGEST = 1 << 16  # of what a document may ask for: a width, a number of layers or steps


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
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
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
    entries = read_document(folder / config, dict[str, Any])
    try:
        found = entries.get("format")
        if found != form:
            raise ValueError(f"its format is '{shown(found)}', not \"{form}\"")
        data = (folder / weights).read_bytes()
        tensors = safetensors.torch.load(data)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"cannot read the {kind} in {folder}: {shown(str(error), 160)}") from error
    document = _of(data, entries, folder / config)
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
        staged = read_document(left, dict[str, Any])
        if staged.get(HASH) == digest:
            return staged
    return None if HASH in document else document


@dataclass(frozen=True)
class ModelDocument:
    """What every document of a model of observations and actions says."""

    spec: dict[str, Any]
    obs_shapes: dict[str, tuple[Size, ...]]
    env: str | None
    meta: dict[str, Any]
    architecture: dict[str, Any]
    kind: str = ""

    def __post_init__(self) -> None:
        sizes = [self.spec.get("chunk", 1), *sum(map(list, self.obs_shapes.values()), [])]
        for value in self.architecture.values():
            sizes += value if isinstance(value, list) else [value]
        if len(sizes) > LARGEST or any(type(n) is int and n > LARGEST for n in sizes):
            raise ValueError(f"sizes should be at most {LARGEST}")

    def action_spec(self) -> ActionSpec:
        """The spec.

        Raises:
            SpecError: it is none.
        """
        return ActionSpec.from_dict(self.spec, 'its "spec"')


M = TypeVar("M", bound=nn.Module)


def build(
    make: Callable[[], M], tensors: Mapping[str, Tensor], path: Path, config: str, *, kind: str
) -> M:
    """The model that a document describes, with the weights of its file.

    It is made without memory first, so that a document that asks for more than the file of weights
    holds is refused before anything is allocated.

    Args:
        make: makes the model.
        tensors: its weights.
        path: of their file.
        config: name of the document beside it.
        kind: what errors call the model, such as "policy".

    Raises:
        InputError: no model can be made of the document; or weights are missing, unknown, or of
            another shape or dtype; names the first.
    """
    try:
        with torch.device("meta"):
            expected = make().state_dict()
        _require_fit(expected, tensors, path, config)
        model = make()
        model.load_state_dict(tensors)
    except InputError as error:
        raise InputError(f"cannot read the {kind} in {path.parent}: {error}") from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
    ) as error:
        raise InputError(
            f"cannot read the {kind} in {path.parent}: {shown(str(error), 160)}"
        ) from error
    return model


def _require_fit(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path, config: str
) -> None:
    beside = f"{path.name} does not fit {config} beside it"
    for name in [*expected, *tensors]:
        if name not in tensors or name not in expected:
            where = "lacks" if name not in tensors else "holds the unknown"
            raise InputError(
                f'{beside}: it {where} tensor "{shown(name)}": are they of two models?'
            )
        wanted, got = expected[name], tensors[name]
        if wanted.shape != got.shape or wanted.dtype != got.dtype:
            raise InputError(
                f'{beside}: the tensor "{shown(name)}" is {_of_kind(got)}, expected '
                f"{_of_kind(wanted)}: are they of two models?"
            )


def _of_kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
