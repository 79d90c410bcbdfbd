"""Writes a LoRA: in diffusers' layout, or in the one that user interfaces for drawing read.

    diffusers   unet.NAME.lora_A.weight, .lora_B.weight
    kohya       UNets: lora_unet_NAME.lora_down.weight, .lora_up.weight, .alpha; NAME with
                underscores, and for SDXL with its original block names (input_blocks_4_1_...);
                transformers: transformer.NAME.lora_A.weight, .lora_B.weight

But for UNets in kohya's layout, the scale alpha / rank is multiplied into `lora_B`. Versions of
diffusers and of user interfaces differ in where they look for an alpha, and all take the rank where
they find none. A DoRA also has `.lora_magnitude_vector`, which kohya calls `.dora_scale`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.lora.adapters import wrapped_layers
from diffusion.lora.files import SCALE, WEIGHTS
from diffusion.lora.names import Layer
from diffusion.parts import whole

LoraLayers = Mapping[str, Mapping[str, Layer]]  # component -> layer's name -> layer
KOHYA = "lora_kohya.safetensors"
_RESNET = {
    "conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTER = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def adapter_layers(network: torch.nn.Module, adapter: str) -> dict[str, Layer]:
    """The layers of an adapter, float32 on the CPU. Collective where the network is split."""
    names = {id(module): name for name, module in network.named_modules()}
    found = {}
    for module in wrapped_layers(network):
        if adapter not in module.lora_A:
            continue
        down, up = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        magnitude = None
        if adapter in module.lora_magnitude_vector:
            magnitude = _kept(module.lora_magnitude_vector[adapter].weight).flatten()
        alpha = module.scaling[adapter] * len(down)
        found[names[id(module)]] = Layer(_kept(down), _kept(up), alpha, magnitude)
    return found


def _kept(weight: Tensor) -> Tensor:
    return whole(weight).detach().float().cpu().contiguous()


def save_diffusers(folder: Path, layers: LoraLayers, about: Mapping[str, str]) -> Path:
    """Write what `pipe.load_lora_weights(folder)` reads; `about` goes into the metadata."""
    return _write(folder / WEIGHTS[0], _all_by_dots(layers), {**about, **_scale_of(layers)})


def _all_by_dots(layers: LoraLayers) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for component, table in layers.items():
        for name, layer in table.items():
            tensors |= _by_dots(component, name, layer)
    return tensors


def _scale_of(layers: LoraLayers) -> dict[str, str]:
    """Metadata: the scale that is multiplied into the denoiser's `lora_B`, if it is one."""
    scales = {
        layer.scale
        for component, table in layers.items()
        if not component.startswith("text_encoder")
        for layer in table.values()
    }
    return {SCALE: repr(*scales)} if len(scales) == 1 and scales != {1.0} else {}


def save_kohya(folder: Path, layers: LoraLayers, about: Mapping[str, str], unet: Any) -> Path:
    """Write what user interfaces for drawing read.

    Args:
        folder: where `KOHYA` is written.
        layers: of all components.
        about: the metadata.
        unet: the UNet's configuration; None for transformers.
    """
    rank, alpha = _usual(layers)
    facts = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank if unet is None else alpha),
    }
    if unet is None:
        whole = {**facts, **about, **_scale_of(layers)}
        return _write(folder / KOHYA, _all_by_dots(layers), whole)
    tensors: dict[str, Tensor] = {}
    numbered = _is_sdxl(unet) or "text_encoder_2" in layers
    for component, table in layers.items():
        encoder = component.startswith("text_encoder")
        number = (component.removeprefix("text_encoder_") if "2" in component else "1") * numbered
        for name, layer in table.items():
            if not encoder and _is_sdxl(unet):
                name = original_name(name, unet)
            prefix = f"lora_te{number}" if encoder else "lora_unet"
            stem = f"{prefix}_{_outer(component, name).replace('.', '_')}"
            tensors[f"{stem}.lora_down.weight"] = layer.down
            tensors[f"{stem}.lora_up.weight"] = layer.up
            tensors[f"{stem}.alpha"] = torch.tensor(layer.alpha)
            if layer.magnitude is not None:
                ones = (1,) * (layer.down.ndim - 1)
                tensors[f"{stem}.dora_scale"] = layer.magnitude.reshape(-1, *ones)
    return _write(folder / KOHYA, tensors, {**facts, **about})


def _usual(layers: LoraLayers) -> tuple[int, float]:
    """Rank and alpha of the denoiser's layers; of the largest rank where they differ."""
    tables = [table for name, table in layers.items() if not name.startswith("text_encoder")]
    largest = max((layer for table in tables for layer in table.values()), key=lambda one: one.rank)
    return largest.rank, largest.alpha


def original_name(name: str, config: Any) -> str:
    """The name that a layer of a diffusers UNet had in Stability's own code."""
    if name in _OUTER:
        return _OUTER[name]
    kind, *rest = name.split(".")
    per_block = config["layers_per_block"] + 1
    if kind == "mid_block":
        part, number, *inner = rest
        place = f"middle_block.{1 if part == 'attentions' else 2 * int(number)}"
    else:
        block, part, number, *inner = rest
        first = int(block) * per_block
        if part == "downsamplers":
            return f"input_blocks.{first + per_block}.0.op"
        if part == "upsamplers":
            attends = "Attn" in config["up_block_types"][int(block)]
            return f"output_blocks.{first + per_block - 1}.{2 if attends else 1}.conv"
        at = first + int(number) + (1 if kind == "down_blocks" else 0)
        side = "input_blocks" if kind == "down_blocks" else "output_blocks"
        place = f"{side}.{at}.{1 if part == 'attentions' else 0}"
    words = [_RESNET[inner[0]]] if part == "resnets" else inner
    return ".".join([place, *words])


def _is_sdxl(config: Any) -> bool:
    return config.get("addition_embed_type") == "text_time"


def _outer(component: str, name: str) -> str:
    """CLIP's outer layer is part of the names in files, whatever the installed version does."""
    clip = component.startswith("text_encoder") and name.startswith("encoder.layers.")
    return f"text_model.{name}" if clip else name


def _by_dots(component: str, name: str, layer: Layer) -> dict[str, Tensor]:
    stem = f"{component}.{_outer(component, name)}"
    up = layer.up if layer.scale == 1 else layer.up * layer.scale
    tensors = {f"{stem}.lora_A.weight": layer.down, f"{stem}.lora_B.weight": up}
    if layer.magnitude is not None:
        ones = (1,) * (layer.down.ndim - 2)
        shape = (1, -1, *ones) if ones else (-1,)
        tensors[f"{stem}.lora_magnitude_vector"] = layer.magnitude.reshape(shape)
    return tensors


def _write(file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> Path:
    """Tensors and metadata, byte for byte the same for the same content."""
    from safetensors.torch import save

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = save(whole, {"format": "pt", **about})
    # The library writes metadata in an order that changes from run to run.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.write(memoryview(content)[end:])
    return file
