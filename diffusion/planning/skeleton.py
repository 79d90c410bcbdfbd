"""A pipeline without weights: networks on the meta device, real tokenizers and schedulers.

Configurations and tokenizers are read, and the headers of files of weights; no weights. Of a hub id
the same small files are taken from the cache or fetched.
"""

from __future__ import annotations

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


def skeleton(
    model: str,
    *,
    dtype: str = "fp32",
    scheduler: str = "keep",
    model_config: str | None = None,
    family: type[Family] | None = None,
) -> Any:
    """The pipeline that `load_pipeline` would load, whose networks have shapes alone; arguments and
    errors are its own.

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
    if found.folder is not None:
        for part in parts:
            _require_whole(found.folder / part)
    return pipe


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


def _require_whole(folder: Path) -> None:
    """Raise InputError where a file of weights in a folder is cut short, as its header says."""
    files = sorted(folder.glob("*.safetensors"))
    for file in [file for file in files if file.stem.count(".") == 0] or files:
        try:
            with safe_open(file, "pt"):
                pass
        except Exception as error:  # SafetensorError and OSError
            raise InputError(
                f'"{file}" is no whole safetensors file ({shown(error, 120)}); was it copied whole?'
            ) from error


def bytes_of(module: torch.nn.Module) -> int:
    """Bytes of a network's parameters and buffers, each storage once."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(size for _, size in {(id(t), t.numel() * t.element_size()) for t in tensors})
