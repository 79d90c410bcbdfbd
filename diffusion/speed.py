"""What makes a denoiser smaller or faster and leaves what it computes the same, up to rounding.

quantization   linear layers of a frozen base in 8 or 4 bits (`quantization.py`): rounds the weights
compile        torch.compile in place (`compiling.py`)
channels last  the channels of a pixel side by side in memory, in UNets and autoencoders: kernels of
               convolutions on cuda are written for it, and would copy into it
TF32           fp32 products on cuda with inputs rounded to 10 bits of mantissa

Attention is that of diffusers, PyTorch's scaled_dot_product_attention; nothing here sets another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from diffusion.compiling import Compiled
from diffusion.config import FinetuneConfig
from diffusion.errors import InputError
from diffusion.optimisers import library_of, optimiser_name
from diffusion.quantization import library_for, quantise


class Speed:
    """How a policy's networks are held; see the module.

    Args:
        quantization: "none", "8bit" or "4bit".
        compile: whether to compile.
        channels_last: whether convolutions are laid out so.

    Attributes:
        library: what quantised, None where nothing is.
    """

    def __init__(
        self, quantization: str = "none", compile: bool = False, channels_last: bool = False
    ) -> None:
        self.quantization, self.compile = quantization, compile
        self.channels_last = channels_last
        self.library: str | None = None
        self._compiled: dict[int, Compiled] = {}

    def quantise(self, network: torch.nn.Module, device: torch.device | str, split: bool) -> None:
        """Quantise a denoiser that is on the CPU still, if it is to be.

        Raises:
            InputError: it cannot be, or its weights are to be `split` over processes.
        """
        if self.quantization == "none":
            return
        if split:
            raise InputError(
                f"--quantization {self.quantization} is for a denoiser that is whole on each "
                "process, and this launch splits it (FSDP): leave one of the two out"
            )
        self.library = quantise(network, self.quantization, device)

    def prepare(
        self,
        denoisers: Sequence[torch.nn.Module],
        vae: torch.nn.Module | None,
        autocast: torch.dtype | None,
    ) -> None:
        """Lay out and compile networks that have their adapters and are where they compute."""
        if self.channels_last:
            for network in (*denoisers, vae):
                if network is not None:
                    lay_out(network)
        if self.compile:
            for network in denoisers:
                dtype: Any = getattr(network, "dtype", torch.float32)
                half = autocast is not None or dtype != torch.float32
                self._compiled[id(network)] = Compiled(network, half=half)

    def run(
        self, network: torch.nn.Module, call: Callable[[], Tensor], inputs: Iterable[Tensor]
    ) -> Tensor:
        """`call()`, in which `network` is called with `inputs`, each (B, ...)."""
        compiled = self._compiled.get(id(network))
        return call() if compiled is None else compiled.run(call, inputs)


def lay_out(network: torch.nn.Module) -> None:
    """Put the weights of 2D convolutions in channels-last order, where a network has any."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def speed_of(config: FinetuneConfig, device: torch.device | str) -> Speed:
    """What a configuration asks for on a device.

    Raises:
        InputError: a library that it needs is not installed.
    """
    library_of(optimiser_name(config.optimizer, device))
    if config.quantization != "none":
        library_for(config.quantization)
    last = _decided(config.channels_last, torch.device(device).type == "cuda")
    return Speed(config.quantization, config.compile, last)


def chosen(config: FinetuneConfig, speed: Speed, device: torch.device | str) -> dict[str, str]:
    """What was left to the device, as config.json records it, and the libraries that compute."""
    cuda = torch.device(device).type == "cuda"
    half = config.autocast is not None or getattr(config, "dtype", "fp32") != "fp32"
    optimizer = optimiser_name(config.optimizer, device)
    found = {
        "optimizer": optimizer,
        "channels_last": "on" if speed.channels_last else "off",
        "allow_tf32": "on" if _decided(config.allow_tf32, cuda and half) else "off",
    }
    libraries = {"quantization": speed.library, "optimizer": library_of(optimizer)}
    return found | {f"{k}_library": v for k, v in libraries.items() if v is not None}


def _decided(asked: str, auto: bool) -> bool:
    return auto if asked == "auto" else asked == "on"


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Within this context fp32 products and convolutions on cuda may use TF32, or may not."""
    convolutions = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), convolutions.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        convolutions.allow_tf32 = before[1]
