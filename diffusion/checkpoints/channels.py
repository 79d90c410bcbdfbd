"""Whether a denoiser takes the autoencoder's latents and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion.errors import InputError

# Input channels per channel of the latents -> what such a network is for.
OTHERS = {
    2.25: "an inpainting model, which also takes a mask and the masked image",
    2.0: "a model that also takes an image (instruct-pix2pix, or a control image)",
    1.25: "a model that also takes a depth map",
    1.75: "an upscaler, which also takes a small image",
    6.0: "an inpainting model, which also takes a mask and the masked image",
}


def require_channels(
    denoiser: Mapping[str, Any], vae: Mapping[str, Any], packed: int, part: str, name: str
) -> None:
    """Check the two configurations: as many input channels as the latents have, `packed` times.

    Raises:
        InputError: another number, as of models for inpainting and editing.
    """
    takes = denoiser.get("in_channels")
    latent = vae.get("latent_channels", vae.get("z_dim"))
    if not isinstance(takes, int) or not isinstance(latent, int) or takes == latent * packed:
        return
    what = OTHERS.get(takes / (latent * packed), "of another autoencoder, or of another task")
    raise InputError(
        f'the {part} of "{name}" takes {takes} input channels, and latents of its autoencoder have '
        f"{latent * packed}: it is {what}; text-to-image models can be trained here"
    )
