"""A LoRA of somebody's brought into a pipeline."""

from __future__ import annotations

import warnings
from typing import Any

from diffusion.families import family_class
from diffusion.lora.adapters import TRAINED, fuse, insert
from diffusion.lora.names import Lora, find_lora


def load_lora(
    pipe: Any, folder: str, *, adapter: str = TRAINED, denoiser: str | None = None
) -> Lora:
    """Load a LoRA (its folder or file, in any layout) into a pipeline.

    The denoiser's part becomes an adapter of this name. What changes text encoders is added to
    their weights. A part that fits nothing here is warned of.

    Args:
        pipe: the pipeline, changed in place.
        folder: the LoRA.
        adapter: a name that the denoiser has not.
        denoiser: the component that is the denoiser; None for that of the pipeline's family.

    Raises:
        InputError: there is none, it is a pickle, no key of it fits, or it is of another model.
    """
    denoiser = denoiser or family_class(type(pipe).__name__).denoiser_name
    lora = read_for(pipe, folder, denoiser)
    if lora.layers.get(denoiser):
        insert(getattr(pipe, denoiser), lora.layers[denoiser], adapter)
    fuse_encoders(pipe, lora)
    return lora


def read_for(pipe: Any, folder: str, denoiser: str) -> Lora:
    """The layers of a LoRA that fit a pipeline; a part that fits nothing is warned of."""
    lora = find_lora(pipe, folder, denoiser)
    if lora.note:
        warnings.warn(lora.note, stacklevel=3)
    return lora


def fuse_encoders(pipe: Any, lora: Lora) -> None:
    """Add what a LoRA changes in text encoders to their weights."""
    for component, layers in lora.layers.items():
        if component != lora.denoiser:
            fuse(getattr(pipe, component), layers)
