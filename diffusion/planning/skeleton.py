"""A pipeline without weights: networks on the meta device, real tokenizers and schedulers.

Configurations and tokenizers are read, and the headers of files of weights; no weights. Of a hub id
the same small files are taken from the cache or fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from diffusion.checkpoints.components import heard, networks
from diffusion.checkpoints.index import Checkpoint, absent
from diffusion.checkpoints.single_file import configuration, is_single_file, open_single_file
from diffusion.errors import InputError, shown
from diffusion.families.family import Family
from diffusion.loading import DTYPES, SHIPPED, checked, prepare_pipeline, reason

SMALL = ("*.json", "*.txt", "*.model", "*.jinja")  # configurations and tokenizers


@dataclass(frozen=True)
class Skeleton:
    """pipe: its networks have shapes alone. stored: bytes of each part's files of weights, by their
    headers; empty where they are not here."""

    pipe: Any
    stored: dict[str, int]


def skeleton(
    model: str,
    *,
    dtype: str = "fp32",
    scheduler: str = "keep",
    model_config: str | None = None,
    family: type[Family] | None = None,
) -> Skeleton:
    """What `load_pipeline` would load, without weights; arguments and errors are its own.

    Raises:
        InputError: it cannot be loaded; its class is one of the user's own, which alone can make
            its networks; or its small files are neither here nor on the hub.
    """
    if family is not None and family.pipeline_class is not None:
        raise InputError(
            f"a plan needs the configuration of every network, and --family {family.__name__} "
            "loads a pipeline of a class of its own; measure a short run instead"
        )
    path = str(SHIPPED.get(model, model))
    if is_single_file(path):
        found = configuration(open_single_file(path), model_config)
        found = checked(found.source, found.name, scheduler, family)
    else:
        found = checked(path, model, scheduler, family)
    folder = found.folder or _small_files(found)
    parts = networks(found)
    made: dict[str, Any] = {part: _empty(found, folder, part, DTYPES[dtype]) for part in parts}
    from diffusers import DiffusionPipeline

    try:
        with heard(lambda line: None):
            pipe = DiffusionPipeline.from_pretrained(
                folder, torch_dtype=DTYPES[dtype], **made, **absent(found)
            )
    except Exception as error:  # as many ways as there are files
        raise InputError(f'cannot plan with "{found.name}": {reason(error)}') from error
    prepare_pipeline(pipe, scheduler=scheduler, name=model, family=family, say=lambda line: None)
    here = found.folder
    return Skeleton(pipe, {part: _stored(here / part) for part in parts} if here else {})


def _small_files(found: Checkpoint) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(found.source, allow_patterns=list(SMALL)))
    except Exception as error:  # the hub and the network fail in many ways
        raise InputError(
            f'the small files of "{found.name}" are not in the cache, and the hub does not give '
            f"them ({shown(error, 120)}): download the model first, or pass a folder"
        ) from error


def _empty(found: Checkpoint, folder: Path, part: str, dtype: torch.dtype) -> torch.nn.Module:
    """A network of the right shapes and precision on the meta device."""
    kind: Any = found.component(part)
    try:
        with torch.device("meta"):
            if found.parts[part][0] == "diffusers":
                network = kind.from_config(dict(found.config(part)))
            else:
                network = kind._from_config(kind.config_class.from_pretrained(folder / part))
    except Exception as error:  # a configuration fails in as many ways as it has entries
        raise InputError(
            f'cannot plan with "{found.name}": its {part}/config.json: {shown(error, 200)}'
        ) from error
    network = network.to("meta").eval().requires_grad_(False)
    fp32 = tuple(getattr(network, "_keep_in_fp32_modules", None) or ())
    if found.parts[part][0] != "diffusers" and dtype != torch.float16:
        fp32 = ()  # transformers keeps them for fp16 alone
    for name, tensor in network.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and not any(one in name.split(".") for one in fp32):
            tensor.data = tensor.data.to(dtype)
    return network


def _stored(folder: Path) -> int:
    """Bytes of the tensors in a folder's safetensors files, of the plain variant where there is
    one, by their headers."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if file.stem.count(".") == 0]
    return sum(map(_bytes_of, plain or files))


def _bytes_of(file: Path) -> int:
    try:
        with safe_open(file, "pt") as held:
            slices = (held.get_slice(name) for name in held.keys())
            return sum(_size(one) for one in slices)
    except Exception as error:  # SafetensorError and OSError
        raise InputError(
            f'"{file}" is no whole safetensors file ({shown(error, 120)}); was it copied whole?'
        ) from error


def _size(one: Any) -> int:
    count = 1
    for side in one.get_shape():
        count *= side
    bits = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16}
    return count * bits.get(one.get_dtype(), 8) // 8


def bytes_of(module: torch.nn.Module) -> int:
    """Bytes of a network's parameters and buffers, each storage once."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(size for _, size in {(id(t), t.numel() * t.element_size()) for t in tensors})
