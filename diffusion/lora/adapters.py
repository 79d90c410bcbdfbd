"""LoRA adapters in any network: added, filled, switched, thinned out, merged.

diffusers has the like for its own classes that mix it in; PixArt's does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from diffusion.errors import InputError, did_you_mean, listed, shown
from diffusion.lora.names import Layer, base_layers

TRAINED, REFERENCE = "default", "reference"  # adapter names
_REGEX = re.compile(r"[\\*+?\[\](){}|^$]")
DROPOUT = 6  # purpose of a random stream; the others are in finetune.py


def target_names(
    network: torch.nn.Module, targets: str, known: Mapping[str, tuple[str, ...]]
) -> list[str]:
    """What --lora-targets means, as PEFT's target_modules.

    Args:
        network: whose layers are meant.
        targets: a key of `known`; or ends of layers' names, separated by commas; or a regex of
            whole names, known by a character that no name has.
        known: the family's lists.

    Raises:
        InputError: a name or the regex fits no layer.
    """
    if targets in known:
        return list(known[targets])
    layers = base_layers(network)
    if _REGEX.search(targets):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise InputError(f"--lora-targets {shown(targets)} is no regex: {error}") from None
        found = [name for name in layers if pattern.fullmatch(name)]
        if not found:
            raise InputError(
                f"--lora-targets {shown(targets)} matches no layer's whole name; names are such as "
                f"{listed(list(layers)[:3])}"
            )
        return found
    names = [name.strip() for name in targets.split(",") if name.strip()]
    for name in names:
        if not any(layer == name or layer.endswith(f".{name}") for layer in layers):
            ends = sorted({end for layer in layers for end in _ends(layer)})
            raise InputError(
                f"--lora-targets: no linear or convolutional layer is called {shown(name)}."
                f"{did_you_mean(name, ends)} Expected {', '.join(known)}, names separated by "
                "commas, or a regex"
            )
    if not names:
        raise InputError(f"--lora-targets: expected {', '.join(known)}, names or a regex")
    return names


def _ends(name: str) -> list[str]:
    """Ends of a layer's name without its numbered blocks: to_out.0 and attn1.to_out.0."""
    words = name.split(".")
    sizes = range(1, min(len(words), 2) + 1)
    return [".".join(words[-n:]) for n in sizes if not words[-n].isdigit()]


def add_adapter(
    network: torch.nn.Module,
    targets: list[str],
    *,
    rank: int,
    alpha: float | None = None,
    dora: bool = False,
    seed: int = 0,
) -> None:
    """A new LoRA that changes nothing yet (its up weights are 0), under the name `TRAINED`.

    `alpha` None is the rank: scale 1, which is what loaders assume where none is recorded.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=cast(int, rank if alpha is None else alpha),
        init_lora_weights="gaussian",
        target_modules=targets,
        use_dora=dora,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(network, config, TRAINED, None)


def insert(
    network: torch.nn.Module,
    layers: Mapping[str, Layer],
    adapter: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Put a LoRA's layers into a network as an adapter, and activate it.

    `dtype` is that of the adapter's weights; None takes each layer's own.
    """
    from peft import LoraConfig

    rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    dora = any(layer.magnitude is not None for layer in layers.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(layers),
        rank_pattern={_exact(name): one.rank for name, one in layers.items() if one.rank != rank},
        alpha_pattern={
            _exact(name): cast(int, one.alpha) for name, one in layers.items() if one.alpha != rank
        },
        use_dora=dora,
    )
    _inject(
        network,
        config,
        adapter,
        {f"{name}.lora_A.weight": one.down for name, one in layers.items()},
    )
    with torch.no_grad():
        for name, layer in layers.items():
            module: Any = network.get_submodule(name)
            weight = module.get_base_layer().weight
            # Copied: another adapter may hold the same layer, and one of them is trained.
            like: Any = {"device": weight.device, "dtype": dtype or weight.dtype, "copy": True}
            module.lora_A[adapter].weight.data = layer.down.to(**like)
            module.lora_B[adapter].weight.data = layer.up.to(**like)
            if dora:
                magnitude, vector = layer.magnitude, module.lora_magnitude_vector[adapter]
                if magnitude is None:  # that of the sum: then it is a plain LoRA
                    magnitude = _lengths(_sum(weight, layer))
                vector.weight.data = magnitude.reshape(vector.weight.shape).to(**like)
    activate(network, adapter)


def _exact(name: str) -> str:
    """A pattern of PEFT's that fits this name alone."""
    return f"^{re.escape(name)}"


def _inject(
    network: torch.nn.Module, config: Any, adapter: str, shapes: dict[str, Tensor] | None
) -> None:
    import warnings

    from peft import inject_adapter_in_model

    if adapter in getattr(network, "peft_config", {}):
        raise InputError(f'the pipeline has a LoRA called "{adapter}" already')
    with warnings.catch_warnings():  # it warns of layers that another adapter has, too
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, network, adapter, state_dict=shapes)
    if hasattr(network, "_hf_peft_config_loaded"):  # diffusers' own methods ask for it
        network._hf_peft_config_loaded = True


def wrapped_layers(network: torch.nn.Module) -> list[Any]:
    """The layers that have an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def activate(network: torch.nn.Module, adapter: str) -> None:
    """Compute with this adapter alone, and train it."""
    for module in wrapped_layers(network):
        module.set_adapter(adapter)


@contextmanager
def computing_with(layers: Sequence[Any], adapter: str | None) -> Iterator[None]:
    """Within this context layers that have adapters compute with one of them, or with none.

    For passes without a gradient. PEFT's own switches also walk through the weights of every layer
    to say which are trained, which takes longer than a small network; here that stays as it is.

    Args:
        layers: of `wrapped_layers`, found once.
        adapter: its name, None for none.
    """
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        if adapter is None:
            layer._disable_adapters = True
        else:
            layer._active_adapter = [adapter]
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def fuse(network: torch.nn.Module, layers: Mapping[str, Layer]) -> None:
    """Add a LoRA to a network's own weights, which keep their dtype."""
    found = base_layers(network)
    with torch.no_grad():
        for name, layer in layers.items():
            weight = cast(Tensor, found[name].weight)
            total = _sum(weight, layer)
            if layer.magnitude is not None:
                lengths = layer.magnitude.to(total) / _lengths(total)
                total *= lengths.reshape(-1, *(1 for _ in weight.shape[1:]))
            weight.copy_(total)


def _sum(weight: Tensor, layer: Layer) -> Tensor:
    """W + scale * up @ down, in float32 on W's device."""
    down, up = (one.flatten(1).to(weight.device) for one in (layer.down, layer.up))
    return weight.float() + (up @ down * layer.scale).reshape(weight.shape)


def _lengths(weight: Tensor) -> Tensor:
    """Norm of each output's row, (out,)."""
    return weight.flatten(1).norm(dim=1)


@contextmanager
def thinned(
    network: torch.nn.Module, adapter: str, rate: float, seed: int, epoch: int
) -> Iterator[None]:
    """Within this context a share `rate` of each adapter's inputs is 0, the rest 1 / (1 - rate).

    Which ones is a function of (seed, epoch) alone. Images are drawn and scored again under the
    same weights, so that ratios stay exact; dropout that draws anew for each pass would be noise
    in every ratio.
    """
    hooks = []
    if rate:
        for place, module in enumerate(wrapped_layers(network)):
            if adapter not in module.lora_A:
                continue
            down = module.lora_A[adapter]
            words = np.random.SeedSequence([seed, DROPOUT, epoch, place])
            stream = torch.Generator().manual_seed(int(words.generate_state(1, np.uint64)[0]) >> 1)
            inputs = down.weight.shape[1]
            kept = (torch.rand(inputs, generator=stream) >= rate).float() / (1 - rate)
            kept = kept.reshape(inputs, *(1 for _ in down.weight.shape[2:])).to(down.weight.device)
            hooks.append(down.register_forward_pre_hook(_times(kept)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _times(factor: Tensor) -> Any:
    return lambda module, inputs: (inputs[0] * factor.to(inputs[0]), *inputs[1:])
