"""Which layers of a pipeline a LoRA's file means: its layout is found by looking the names up.

A name in a file is a layer's name with something before it (`unet.`, `base_model.model.`,
`module.`, `lora_unet_`), with underscores instead of dots, or both. All of these are looked up in a
table of the layers that there are. What is not found goes through diffusers' own conversions, which
know the original block names of SDXL, Flux and others, and is looked up again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from diffusion.errors import InputError, listed, shown
from diffusion.lora.files import SCALE, LoraFile, Parts, read_lora, sorted_keys

_WRAPPERS = ("base_model.model.", "module.", "_orig_mod.", "model.", "diffusion_model.")
_DENOISER = ("unet.", "transformer.", "lora_unet_", "lora_transformer_", "lycoris_")
_ENCODERS = {  # the prefixes of one component; the first that fits counts
    "text_encoder": ("text_encoder.", "lora_te1_", "lora_te_"),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_"),
    "text_encoder_3": ("text_encoder_3.", "lora_te3_"),
}
_OLD_CLIP = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Layer:
    """The LoRA of one layer: W + alpha / rank * up @ down, float32.

    With a magnitude (out,), a DoRA: rows of that matrix, scaled to these lengths.
    """

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass
class Lora:
    """Layers by component and name, all of which fit; and how much of the file they are."""

    source: str
    denoiser: str
    layers: dict[str, dict[str, Layer]] = field(default_factory=dict)
    used: int = 0
    total: int = 0
    unused: list[str] = field(default_factory=list)

    @property
    def note(self) -> str | None:
        """What is to be said where a part of the file is not used."""
        if not self.unused:
            return None
        return (
            f'of the LoRA "{self.source}", {self.used} of {self.total} keys are used; unused: '
            f"{listed(self.unused)}"
        )


def base_layers(network: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Linear and convolutional layers by name, also where an adapter wraps them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, torch.nn.Module] = {}
    wrapped: list[str] = []
    for name, module in network.named_modules():
        if any(name.startswith(f"{outer}.") for outer in wrapped[-1:]):
            continue
        if isinstance(module, BaseTunerLayer):
            wrapped.append(name)
            module = module.get_base_layer()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            found[name] = module
    return found


def find_lora(pipe: Any, folder: str, denoiser: str) -> Lora:
    """Read a LoRA and find its layers in a pipeline, whose denoiser is the component `denoiser`.

    Raises:
        InputError: it cannot be read, no key of it fits, or a layer has another shape here.
    """
    file = read_lora(folder)
    tables = {name: _Table(network) for name, network in _networks(pipe, denoiser).items()}
    lora = Lora(folder, denoiser, total=file.total, unused=list(file.strange))
    for stem, parts in file.stems.items():
        if not _take(lora, file, tables, stem, parts) and not _converted(
            pipe, lora, file, tables, stem, parts
        ):
            lora.unused += parts.keys
        else:
            lora.used += len(parts.keys)
    if not lora.used:
        kind = type(pipe).__name__
        raise InputError(
            f'no key of the LoRA "{folder}" fits this {kind} (0 of {lora.total}; the file has '
            f"{listed(lora.unused[:3])}): {_why(lora.unused)}"
        )
    return lora


def _why(keys: list[str]) -> str:
    if any(".lokr_" in key or ".hada_" in key or ".oft_" in key for key in keys):
        return "it is a LoKr, LoHa or OFT, which are not supported; convert it to a LoRA"
    return "is it of another model?"


def _networks(pipe: Any, denoiser: str) -> dict[str, torch.nn.Module]:
    names = [denoiser, *(name for name in _ENCODERS if name in pipe.components)]
    return {n: getattr(pipe, n) for n in names if isinstance(getattr(pipe, n), torch.nn.Module)}


class _Table:
    """The layers of a network by their names, and by their names with underscores."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.layers = base_layers(network)
        self.flat: dict[str, str | None] = {}
        for name in self.layers:
            flat = name.replace(".", "_")
            self.flat[flat] = None if flat in self.flat else name  # two that look alike: neither

    def find(self, name: str) -> str | None:
        for one in _spellings(name):
            found = one if one in self.layers else self.flat.get(one.replace(".", "_"))
            if found is not None:
                return found
        return None


def _spellings(name: str) -> list[str]:
    plain = name.replace(".processor.", ".").replace("_processor_", "_")
    names = [plain, f"{plain}.0"]  # to_out is to_out.0
    head, _, last = plain.rpartition(".")
    if last in _OLD_CLIP:
        names.append(f"{head}.{_OLD_CLIP[last]}")
    for one in list(names):  # CLIP's own outer layer, which some versions leave out
        bare = one.removeprefix("text_model.").removeprefix("text_model_")
        names += [bare, f"text_model.{bare}"]
    return names


def _place(stem: str, denoiser: str, tables: Mapping[str, _Table]) -> tuple[str, str] | None:
    """Component and layer that a stem means, or None."""
    name = stem
    while True:
        for component, prefixes in _ENCODERS.items():
            for prefix in prefixes:
                if name.startswith(prefix):
                    table = tables.get(component)
                    found = table.find(name.removeprefix(prefix)) if table else None
                    return None if found is None else (component, found)
        found = tables[denoiser].find(name)
        if found is not None:
            return denoiser, found
        for prefix in (*_WRAPPERS, *_DENOISER):
            if name.startswith(prefix):
                name = name.removeprefix(prefix)
                break
        else:
            return None


def _take(
    lora: Lora, file: LoraFile, tables: Mapping[str, _Table], stem: str, parts: Parts
) -> bool:
    """Add the layer that a stem means; False where it means none."""
    place = _place(stem, lora.denoiser, tables)
    if place is None or parts.down is None or parts.up is None:
        return False
    component, name = place
    taken = lora.layers.setdefault(component, {})
    if name in taken:
        raise InputError(f'"{lora.source}" has two LoRAs for the layer {name} of the {component}')
    layer = _layer(lora.source, name, parts, tables[component].layers[name].weight)
    taken[name] = _scaled(layer, file, component, name, parts, lora.denoiser)
    return True


def _converted(
    pipe: Any, lora: Lora, file: LoraFile, tables: Mapping[str, _Table], stem: str, parts: Parts
) -> bool:
    """The same by way of diffusers' conversions; one layer may become several."""
    convert = getattr(type(pipe), "lora_state_dict", None)
    if convert is None or parts.down is None or parts.up is None:
        return False
    keys = {k: t for k, t in parts.keys.items() if t is not parts.magnitude and t is not parts.mid}
    options = {"unet_config": pipe.unet.config} if lora.denoiser == "unet" else {}
    try:
        found = convert(keys, **options)
    except Exception:  # an unknown name fails in as many ways as there are conversions
        return False
    stems, _ = sorted_keys(found[0] if isinstance(found, tuple) else found, lora.source)
    for other, same in stems.items():
        if same.down is parts.down:  # another name for the same weights
            return _take(lora, file, tables, other, parts)
    whole = {s: p for s, p in stems.items() if p.down is not None and p.up is not None}
    if not whole or any(_place(s, lora.denoiser, tables) is None for s in whole):
        return False
    if parts.magnitude is not None:
        raise InputError(
            f'the DoRA "{lora.source}" joins several layers into one ({shown(stem)}), whose '
            "magnitudes cannot be taken apart: convert it to a LoRA"
        )
    for other, part in whole.items():  # their alphas are multiplied in
        _take(lora, LoraFile(file.source, {}, [], {}, {}), tables, other, part)
    return True


def _layer(source: str, name: str, parts: Parts, weight: Tensor) -> Layer:
    """The LoRA of one layer, alpha = rank, in the shapes of its weight (out, in, ...)."""
    assert parts.down is not None and parts.up is not None
    down, up = parts.down.float(), parts.up.float()
    given = f"{tuple(down.shape)} and {tuple(up.shape)}"
    if parts.mid is not None and parts.mid.ndim == 4:  # a convolution in three factors
        down = torch.einsum("abhw,bi->aihw", parts.mid.float(), down.flatten(1))
    rank, (out, into, *kernel) = len(down), weight.shape
    size = into * math.prod(kernel)
    if not rank or down.numel() != rank * size or up.numel() != out * rank:
        raise InputError(
            f'the LoRA "{source}" does not fit this pipeline (another model?): its layer {name} '
            f"has weights of shapes {given} for a layer of shape {tuple(weight.shape)}"
        )
    for what in (down, up):
        if not bool(torch.isfinite(what).all()):
            raise InputError(
                f'"{source}" holds NaN or infinite weights ({name}): they are of a training that '
                "diverged, or too large for their precision"
            )
    magnitude = parts.magnitude
    if magnitude is not None:
        by_input = magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.shape[1] != out
        if magnitude.numel() != out or by_input or not bool(torch.isfinite(magnitude).all()):
            raise InputError(
                f'the DoRA "{source}" has magnitudes of shape {tuple(magnitude.shape)} for the '
                f"layer {name}; expected one finite number for each of its {out} outputs"
            )
        magnitude = magnitude.float().flatten()
    down = down.reshape(rank, into, *kernel)
    up = up.reshape(out, rank, *(1 for _ in kernel))
    return Layer(down, up, float(rank), magnitude)


def _scaled(
    layer: Layer, file: LoraFile, component: str, name: str, parts: Parts, denoiser: str
) -> Layer:
    """The layer with its alpha: the file's own, else its configuration's, else its rank."""
    alpha: float | None = None
    if parts.alpha is not None:
        alpha = float(parts.alpha) if parts.alpha.numel() == 1 else math.nan
    elif component == denoiser and SCALE in file.metadata:  # one of ours: undo what saving did
        scale = _number(file.metadata[SCALE])
        return replace(layer, up=layer.up / scale, alpha=scale * layer.rank)
    else:
        config = file.configs.get(component) or file.configs.get("")
        alpha = config.alpha(name, layer.rank) if config else None
    if alpha is None:
        return layer
    if not math.isfinite(alpha):
        raise InputError(f'the LoRA "{file.source}" has no finite alpha for its layer {name}')
    return replace(layer, alpha=alpha)


def _number(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale) or scale == 0:
        raise InputError(f"a LoRA's metadata has {SCALE} {shown(text)}: expected a scale")
    return scale
