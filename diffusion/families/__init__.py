"""Families of text-to-image pipelines, one file each: how a pipeline class is called.

`family_class` finds a family by the pipeline's class. One of a user's own has the same form; see
`diffusion.families.family.Family`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from diffusion.errors import InputError

if TYPE_CHECKING:
    from diffusion.families.family import Family

# A pipeline's class -> where its family is. The order is that of messages.
FAMILIES = {
    "StableDiffusionPipeline": "stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": "sdxl:SDXL",
    "PixArtAlphaPipeline": "pixart:PixArt",
    "PixArtSigmaPipeline": "pixart:PixArt",
    "StableDiffusion3Pipeline": "sd3:SD3",
    "FluxPipeline": "flux:Flux",
    "Flux2KleinPipeline": "flux2_klein:Flux2Klein",
    "QwenImagePipeline": "qwen_image:QwenImage",
    "ZImagePipeline": "z_image:ZImage",
    "SanaPipeline": "sana:Sana",
}


def family_class(pipeline: str, name: str = "the pipeline") -> type[Family]:
    """The family of pipelines of the class `pipeline`.

    Raises:
        InputError: none is known.
    """
    if pipeline not in FAMILIES:
        raise InputError(
            f'"{name}" is a {pipeline}; supported are {", ".join(FAMILIES)}. A family of your own '
            "joins by --family module:Class (docs/EXTENDING.md)"
        )
    module, _, kind = FAMILIES[pipeline].partition(":")
    return getattr(importlib.import_module(f"diffusion.families.{module}"), kind)
