"""Loading a `diffusers` pipeline from a shipped name, a folder or a hub id, made ready to train."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from diffusion.errors import InputError
from diffusion.families import family_class

ASSETS = Path(__file__).parent / "assets"
TINY = ASSETS / "tiny"
SHIPPED = {"tiny": TINY, "tiny-flow": ASSETS / "tiny-flow"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_pipeline(model: str, *, dtype: str = "fp32", scheduler: str = "keep"):
    """A pipeline of a known family, from a shipped name, a folder or a hub id.

    `scheduler`: keep, ddim or ddpm (swapped in with the same noise schedule). Raises InputError for
    anything that cannot be loaded, naming the likely cause.
    """
    from diffusers import DiffusionPipeline

    path = str(SHIPPED.get(model, model))
    if model not in SHIPPED and _looks_like_path(model) and not Path(model).is_dir():
        raise InputError(
            f'model folder "{model}" does not exist; pass a folder, a hub id, "tiny" or "tiny-flow"'
        )
    if Path(path).is_dir() and not (Path(path) / "model_index.json").is_file():
        raise InputError(
            f'"{path}" has no model_index.json, so it is not a diffusers pipeline folder; '
            "pass the folder that save_pretrained() wrote"
        )
    try:
        # SD 1.x ships a safety checker we never call; other classes do not know the argument.
        plain = _class_name(path) in (None, "StableDiffusionPipeline")
        extra = _absent_parts(path) | ({"safety_checker": None} if plain else {})
        pipe = DiffusionPipeline.from_pretrained(
            path, torch_dtype=DTYPES[dtype], use_safetensors=True, **extra
        )
    except Exception as error:  # a broken or foreign folder fails in as many ways as it has files
        raise InputError(f'cannot load pipeline "{model}": {reason(error)}') from error
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            require_finite(part, model)
    return prepare_pipeline(pipe, scheduler=scheduler, name=model)


def prepare_pipeline(pipe, *, scheduler: str = "keep", name: str = "the pipeline"):
    """A pipeline that is loaded already, made ready for `ImagePolicy` in place: its weights frozen,
    a scheduler whose steps have densities. Arguments and errors as of `load_pipeline`.
    """
    from diffusers import DDIMScheduler, DDPMScheduler

    family = family_class(type(pipe).__name__, name)
    if family.flow:
        _require_flow_scheduler(pipe, scheduler, name)
        return _frozen(pipe)
    kinds = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}
    if scheduler in kinds:
        pipe.scheduler = kinds[scheduler].from_config(pipe.scheduler.config)
    elif type(pipe.scheduler).__name__ not in ("DDIMScheduler", "DDPMScheduler"):
        # Its noise schedule is kept; only the sampler changes, to one whose steps have densities.
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return _frozen(pipe)


def _require_flow_scheduler(pipe, scheduler: str, name: str) -> None:
    kind = type(pipe.scheduler).__name__
    if scheduler != "keep":
        raise InputError(
            f'--scheduler {scheduler} is for diffusion models, and "{name}" is a flow model: '
            "choose how it is sampled with --sampler"
        )
    if kind != "FlowMatchEulerDiscreteScheduler":
        raise InputError(
            f'"{name}" is a flow model whose scheduler is {kind}; step densities are known for '
            "FlowMatchEulerDiscreteScheduler"
        )


def _frozen(pipe):
    pipe.set_progress_bar_config(disable=True)
    for module in _modules(pipe):
        module.requires_grad_(False)
        module.eval()
    return pipe


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def _class_name(path: str) -> str | None:
    index = Path(path) / "model_index.json"
    return json.loads(index.read_text()).get("_class_name") if index.is_file() else None


def _absent_parts(path: str) -> dict[str, None]:
    """Components that a folder says it does without, such as SD3's T5: diffusers must be told."""
    index = Path(path) / "model_index.json"
    entries = json.loads(index.read_text()) if index.is_file() else {}
    return {name: None for name, entry in entries.items() if entry == [None, None]}


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
