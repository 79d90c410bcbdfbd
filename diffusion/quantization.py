"""A frozen network's linear layers in 8 or 4 bits, which a LoRA is trained on top of (QLoRA, arXiv
2305.14314).

    8bit    torchao: int8 with one scale for each output; else bitsandbytes: LLM.int8, which rounds
            the inputs as well
    4bit    bitsandbytes: NF4 with one scale for each 64 weights

Products are computed in the dtype that the weights had. Convolutions, norms and the layers that the
network's class keeps in float32 stay as they are. Layers are moved and quantised one by one, so
the device never holds the network in its full size.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch

from diffusion.errors import InputError

LIBRARIES = {"8bit": ("torchao", "bitsandbytes"), "4bit": ("bitsandbytes",)}  # the best first


def library_for(quantization: str) -> str:
    """The library that quantises to "8bit" or "4bit" here.

    Raises:
        InputError: none is installed.
    """
    for name in LIBRARIES[quantization]:
        if importlib.util.find_spec(name) is not None:
            return name
    wanted = LIBRARIES[quantization]
    raise InputError(
        f"--quantization {quantization} needs {' or '.join(wanted)}, which "
        f"{'is' if len(wanted) == 1 else 'are'} not installed: pip install {wanted[0]}"
    )


def quantise(network: torch.nn.Module, quantization: str, device: torch.device | str) -> str:
    """Quantise a network in place, and move what is quantised to `device`.

    Args:
        network: with weights in a floating dtype on the CPU, and without adapters.
        quantization: "8bit" or "4bit".
        device: where the layers will compute.

    Returns:
        The library that did it.

    Raises:
        InputError: the library is not installed or refuses, or no layer is linear.
    """
    library = library_for(quantization)
    layers = list(_linear_layers(network))
    if not layers:
        raise InputError(
            f"--quantization {quantization}: the {type(network).__name__} has no linear layer; "
            "pass --quantization none"
        )
    try:
        change = {"torchao": _by_torchao, "bitsandbytes": _by_bitsandbytes}[library](quantization)
        for parent, name, layer in layers:
            layer.requires_grad_(False)
            setattr(parent, name, change(layer.to(device)))
    except (RuntimeError, ImportError, NotImplementedError, ValueError) as error:
        raise InputError(
            f"--quantization {quantization}: {library} cannot quantise on {device} "
            f"({' '.join(str(error).split())[:160]})"
        ) from error
    if library == "bitsandbytes":  # by which PEFT knows its layers
        setattr(network, f"is_loaded_in_{quantization}", True)
    return library


def _linear_layers(
    network: torch.nn.Module,
) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    """(its parent, its name there, the layer)."""
    kept = getattr(network, "_keep_in_fp32_modules", None) or ()
    for path, parent in list(network.named_modules()):
        for name, layer in list(parent.named_children()):
            whole = f"{path}.{name}"
            if type(layer) is torch.nn.Linear and not any(k in whole.split(".") for k in kept):
                yield parent, name, layer


def _by_torchao(quantization: str) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def change(layer: torch.nn.Linear) -> torch.nn.Module:
        quantize_(layer, Int8WeightOnlyConfig())
        return layer.requires_grad_(False)

    return change


def _by_bitsandbytes(quantization: str) -> Any:
    import bitsandbytes

    nn, four = bitsandbytes.nn, quantization == "4bit"

    def change(layer: torch.nn.Linear) -> torch.nn.Module:
        shape = (layer.in_features, layer.out_features, layer.bias is not None)
        device = layer.weight.device
        new: Any
        with torch.device("meta"):  # what it allocates is replaced
            if four:
                dtype = layer.weight.dtype
                new = nn.Linear4bit(*shape, compute_dtype=dtype, quant_type="nf4")
                # On a CPU it would repack weights in eval mode, for a kernel without a gradient.
                new.support_avx512bf16_for_cpu = False
            else:
                new = nn.Linear8bitLt(*shape, has_fp16_weights=False)
        weight = layer.weight.data.cpu()  # what quantises is the move to the device
        if four:
            new.weight = nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=new)
        else:
            new.weight = nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        new.bias = layer.bias
        return new.to(device)

    return change
