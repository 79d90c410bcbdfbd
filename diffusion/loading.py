"""Loading a `diffusers` pipeline from a shipped name, a folder or a hub id, made ready to train."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffusion.checkpoints.channels import require_channels
from diffusion.checkpoints.components import (
    SETTINGS,
    chosen_variants,
    heard,
    load_networks,
    networks,
)
from diffusion.checkpoints.index import Checkpoint, absent, require_parts
from diffusion.checkpoints.schedulers import fit, fitted, mended, read_scheduler
from diffusion.checkpoints.single_file import is_single_file, load_single_file
from diffusion.errors import InputError
from diffusion.families import family_class
from diffusion.families.family import Family

if TYPE_CHECKING:
    from diffusion.families.family import Family

ASSETS = Path(__file__).parent / "assets"
TINY = ASSETS / "tiny"
SHIPPED = {"tiny": TINY, "tiny-flow": ASSETS / "tiny-flow"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_pipeline(
    model: str,
    *,
    dtype: str = "fp32",
    scheduler: str = "keep",
    variant: str | None = None,
    model_config: str | None = None,
    family: type[Family] | None = None,
    say: Callable[[str], None] = print,
):
    """A pipeline of a known family, from a shipped name, a folder, a hub id or a single file.

    What can be known from its small files is checked before weights are read or downloaded: the
    family, the scheduler, the parts, the denoiser's input.

    Args:
        model: "tiny" or "tiny-flow", a folder, a hub id, or a .safetensors file.
        dtype: fp32, bf16 or fp16.
        scheduler: keep, ddim or ddpm (swapped in with the same noise schedule).
        variant: of the weights' files, such as fp16 for `*.fp16.safetensors`.
        model_config: folder or hub id with what a single file does not hold.
        family: stands for the one that the pipeline's class has.
        say: is told of every replacement and of what was lost, one line each.

    Raises:
        InputError: it cannot be loaded; the message names the likely cause.
    """
    path = str(SHIPPED.get(model, model))
    if is_single_file(path):
        pipe = load_single_file(path, model_config, dtype=DTYPES[dtype], variant=variant, say=say)
    elif model_config is not None:
        raise InputError(
            f'--model-config is for a single .safetensors file, and --model "{model}" is none'
        )
    elif family is not None and family.pipeline_class is not None:
        pipe = _of_own_class(path, family.pipeline_class, DTYPES[dtype], model)
    else:
        found = checked(path, model, scheduler, family)
        pipe = _from_folder(found, DTYPES[dtype], variant, say)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            require_finite(part, model)
    return prepare_pipeline(pipe, scheduler=scheduler, name=model, family=family, say=say)


def _of_own_class(path: str, kind: Any, dtype: torch.dtype, model: str):
    try:
        return kind.from_pretrained(path, torch_dtype=dtype, use_safetensors=True)
    except Exception as error:  # a stranger's class fails in its own ways
        raise InputError(f'cannot load pipeline "{model}": {reason(error)}') from error


def checked(path: str, model: str, scheduler: str, family: type[Family] | None) -> Checkpoint:
    """A folder or hub id, known to be supported before its weights are touched."""
    if not Path(path).is_dir() and (_looks_like_path(model) or model in SHIPPED):
        raise InputError(
            f'model folder "{model}" does not exist; pass a folder, a hub id, a .safetensors file, '
            '"tiny" or "tiny-flow"'
        )
    found = Checkpoint(path, model)
    kind = family or family_class(found.class_name, model)
    require_parts(found, kind.may_lack)
    own = read_scheduler(found)
    if own is not None:
        fitted(own, flow=kind.flow, wanted=scheduler, name=model)
    part = kind.denoiser_name
    configs = found.config(part), found.config("vae")
    require_channels(*configs, kind.channels_per_latent, part, model)
    return found


def _from_folder(
    found: Checkpoint, dtype: torch.dtype, variant: str | None, say: Callable[[str], None]
):
    from diffusers import DiffusionPipeline

    parts = networks(found)
    chosen_variants(found, variant, parts)  # before a download
    without = absent(found)
    try:
        folder = found.folder or Path(
            DiffusionPipeline.download(
                found.source, use_safetensors=True, variant=variant, **without
            )
        )
    except Exception as error:  # the hub and the network fail in many ways
        raise InputError(f'cannot download "{found.name}": {reason(error)}') from error
    loaded = load_networks(found, folder, parts, dtype=dtype, variant=variant, say=say)
    own = read_scheduler(found)
    try:
        with heard(say, SETTINGS):
            pipe = DiffusionPipeline.from_pretrained(
                folder, torch_dtype=dtype, use_safetensors=True, **loaded, **without
            )
    except Exception as error:  # a broken or foreign folder fails in as many ways as it has files
        raise InputError(f'cannot load pipeline "{found.name}": {reason(error)}') from error
    if own is not None and (changed := mended(pipe, dict(own.config))):
        say(changed)
    return pipe


def prepare_pipeline(
    pipe,
    *,
    scheduler: str = "keep",
    name: str = "the pipeline",
    family: type[Family] | None = None,
    say: Callable[[str], None] = print,
):
    """A pipeline that is loaded already, made ready for `ImagePolicy` in place: its weights frozen,
    a scheduler whose steps have densities. Arguments and errors as of `load_pipeline`.
    """
    kind = family or family_class(type(pipe).__name__, name)
    part = kind.denoiser_name
    denoiser, vae = getattr(pipe, part), getattr(pipe, "vae", None)
    if vae is not None:
        require_channels(denoiser.config, vae.config, kind.channels_per_latent, part, name)
    if note := fit(pipe, flow=kind.flow, wanted=scheduler, name=name):
        say(note)
    return _frozen(pipe)


def _frozen(pipe):
    pipe.set_progress_bar_config(disable=True)
    for module in _modules(pipe):
        module.requires_grad_(False)
        module.eval()
    return pipe


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def denoiser_config(model: str) -> dict:
    """The configuration of a pipeline's UNet or transformer, read from its folder; empty where it
    is none."""
    for part in ("unet", "transformer"):
        try:
            path = Path(SHIPPED.get(model, model)) / part / "config.json"
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue  # a hub id, or a folder that loading will refuse
        if isinstance(found, dict):
            return found
    return {}


def reason(error: Exception) -> str:
    """The start of an error's message as one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _modules(pipe) -> list[torch.nn.Module]:
    return [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]


def fingerprint(pipe) -> str:
    """16 hex digits of a pipeline's weights: names, shapes and double-precision sums.

    Take it before any adapter is added.
    """
    digest = hashlib.sha256()
    for module in _modules(pipe):
        for name, tensor in sorted(module.state_dict().items()):
            total = f"{tensor.detach().double().sum().item():.9e}"
            digest.update(f"{name}{tuple(tensor.shape)}{total}".encode())
    return digest.hexdigest()[:16]


def require_finite(network: torch.nn.Module, source: str) -> None:
    """Raise InputError for a network with NaN or infinite weights, which `source` holds."""
    for name, weight in network.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise InputError(
                f'"{source}" holds NaN or infinite weights ({name}): they are of a training that '
                "diverged, or too large for their --dtype"
            )
