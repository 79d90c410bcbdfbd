"""Settings that depend on where the networks compute: sizes of batches, and what is offloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffusion.recommended import PUBLISHED
from genpol.commands.finetune.options import Finetune

SIZES = ("rollout_batch", "micro_batch")


def for_device(config: Finetune, usual: Mapping[str, Any]) -> Finetune:
    """Sizes that were not given are found on a GPU. On a CPU "auto" is the recommended size.

    Args:
        config: as given.
        usual: recommended settings by name.

    Raises:
        InputError: no such device, or --offload names something else than parts.
    """
    from diffusion.offload import parse_offload
    from genpol.runs.device import pick_device

    parse_offload(config.offload)
    device = planned_device(config) if config.plan else pick_device(config.device)
    on_gpu = device.startswith("cuda")
    sizes: dict[str, Any] = {name: getattr(config, name) for name in SIZES}
    for name, size in sizes.items():
        if on_gpu and size is None:
            sizes[name] = "auto"
        elif size == "auto" and not on_gpu:
            sizes[name] = usual[name]
    return replace(config, **sizes)


def planned_device(config: Finetune) -> str:
    """The device of a run that is planned, which need not be here."""
    import torch

    if config.device not in (None, "auto"):
        return str(config.device)
    return "cuda" if torch.cuda.is_available() or config.device_memory else "cpu"


def typical_size(config: Finetune) -> int:
    """Pairs of a micro-batch, for a measurement on the CPU."""
    size = config.micro_batch
    return size if isinstance(size, int) else int(PUBLISHED["micro_batch"])
