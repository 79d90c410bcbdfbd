"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusion.chain import Condition
from diffusion.families.family import ATTENTION, Family


class UNetFamily(Family):
    """What the UNet pipelines share."""

    denoiser_name = "unet"
    flow = False
    own_call = True
    lora_targets = {
        "attention": ATTENTION,
        "all": (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"),
    }

    @property
    def default_size(self) -> int:
        size = self.pipe.unet.config.sample_size
        return int((size if isinstance(size, int) else size[0]) * self.pipe.vae_scale_factor)

    def reader(self) -> tuple[Any, int]:
        return self.pipe.tokenizer, self.pipe.tokenizer.model_max_length

    def decode(self, latents: Tensor) -> Tensor:
        config = self.pipe.vae.config
        z = latents / config.scaling_factor
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            like = {"device": z.device, "dtype": z.dtype}
            z = z * torch.tensor(std, **like).view(1, -1, 1, 1)
            z = z + torch.tensor(mean, **like).view(1, -1, 1, 1)
        return self.pipe.vae.decode(z, return_dict=False)[0]

    def encode_image(self, images: Tensor) -> Tensor:
        config = self.pipe.vae.config
        z = self.pipe.vae.encode(images).latent_dist.mode()
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            like = {"device": z.device, "dtype": z.dtype}
            z = z - torch.tensor(mean, **like).view(1, -1, 1, 1)
            z = z / torch.tensor(std, **like).view(1, -1, 1, 1)
        return z * config.scaling_factor


class StableDiffusion(UNetFamily):
    """`StableDiffusionPipeline`."""

    @property
    def architecture(self) -> str:  # type: ignore[override]
        second = self.denoiser.config.get("cross_attention_dim") == 1024  # OpenCLIP's width
        return "stable-diffusion-v2" if second else "stable-diffusion-v1"

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        return {"text": self.pipe.encode_prompt(prompts, device, 1, False)[0]}

    def call(
        self, net: torch.nn.Module, x_t: Tensor, t: Tensor, cond: Condition, guidance_scale: float
    ) -> Tensor:
        return net(x_t.to(net.dtype), t, encoder_hidden_states=cond["text"], return_dict=False)[0]
