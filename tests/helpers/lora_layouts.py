"""One known LoRA written in the layouts that people have.

`known(pipe, component, names)` makes it; a layout is a function that writes it into a folder.
"""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_families import tiny
from torch import Tensor

from diffusion.families import family_class

RANK, ALPHA = 4, 8.0
# Small images and short prompts of each family.
SIZES: dict[str, dict[str, int]] = {
    "flux": {"height": 32, "width": 32, "max_sequence_length": 16},
    "flux2_klein": {"height": 32, "width": 32, "max_sequence_length": 24},
    "qwen_image": {"height": 32, "width": 32},
    "z_image": {"height": 32, "width": 32, "max_sequence_length": 24},
    "sana": {"height": 32, "width": 32, "max_sequence_length": 24},
    "sd3": {"max_sequence_length": 8},
}
Known = dict[str, tuple[Tensor, Tensor]]  # layer -> (down, up), in the shapes of its weight


@functools.cache
def _master(family: str) -> Any:
    return tiny(family)


def fresh(family: str, *parts: str) -> Any:
    """A pipeline of the family whose denoiser, and whose other parts named here, are as new."""
    pipe = copy.copy(_master(family))
    for name in (denoiser_name(pipe), *parts):
        setattr(pipe, name, copy.deepcopy(getattr(_master(family), name)))
    return pipe


def denoiser_name(pipe: Any) -> str:
    return family_class(type(pipe).__name__).denoiser_name


@functools.cache
def base_output(family: str) -> Tensor:
    """That of the pipeline without a LoRA."""
    return output(family, fresh(family))


@functools.cache
def expected(
    family: str, ends: tuple[str, ...], magnitude: float | None = None
) -> tuple[Known, Tensor]:
    """A known LoRA, and the output that it has to give; as a DoRA with rows of this length."""
    pipe = fresh(family)
    network = getattr(pipe, denoiser_name(pipe))
    lora = known(network, ends)
    add_known(network, lora, ALPHA / RANK, magnitude)
    return lora, output(family, pipe)


@torch.no_grad()
def output(name: str, pipe: Any) -> Tensor:
    """The denoiser's output for a fixed input and a prompt, through the family's own calls."""
    family = family_class(type(pipe).__name__)(pipe, **SIZES.get(name, {}))
    cond = family.encode(["a cat"], torch.device("cpu"))
    x = torch.randn(1, *family.latent_shape, generator=torch.Generator().manual_seed(1))
    return family.call(family.denoiser.eval(), x, torch.tensor([500.0]), cond, 1.0)


def known(network: torch.nn.Module, ends: tuple[str, ...], seed: int = 0) -> Known:
    """Random factors for the layers whose names end so."""
    stream = torch.Generator().manual_seed(seed)
    found: Known = {}
    for name, module in network.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and name.endswith(ends):
            out, into, *kernel = module.weight.shape
            down = torch.randn(RANK, into, *kernel, generator=stream) * 0.2
            up = torch.randn(out, RANK, *(1 for _ in kernel), generator=stream) * 0.2
            found[name] = down, up
    assert found
    return found


def add_known(
    network: torch.nn.Module, lora: Known, scale: float, magnitude: float | None = None
) -> None:
    """W + scale up down, written apart from the product's own; rows of one length for a DoRA."""
    with torch.no_grad():
        for name, (down, up) in lora.items():
            weight = network.get_submodule(name).weight
            delta = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)) * scale
            weight += delta.reshape(weight.shape)
            if magnitude is not None:
                rows = weight.flatten(1).norm(dim=1)
                weight *= (magnitude / rows).reshape(-1, *[1] * (weight.ndim - 1))


def write(
    folder: Path, tensors: dict[str, Tensor], name: str = "lora.safetensors", **metadata: str
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / name, metadata)
    return folder


def keyed(lora: Known, stem: str, down: str, up: str, *, folded: bool = False) -> dict[str, Tensor]:
    """Tensors by keys; `stem` has {} for the name. Folded: the scale is in the up weights."""
    scale = ALPHA / RANK if folded else 1.0
    tensors = {}
    for name, (a, b) in lora.items():
        tensors[stem.format(name) + down] = a
        tensors[stem.format(name) + up] = b * scale
    return tensors


def kohya(lora: Known, prefix: str = "lora_unet_", rename: Any = None) -> dict[str, Tensor]:
    """Underscores and alphas."""
    tensors = {}
    for name, (down, up) in lora.items():
        stem = prefix + (rename(name) if rename else name).replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = down
        tensors[f"{stem}.lora_up.weight"] = up
        tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
    return tensors


def peft_config(folder: Path, **more: Any) -> None:
    document = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["to_q"]}
    (folder / "adapter_config.json").write_text(json.dumps(document | more))
