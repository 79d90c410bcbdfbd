"""Flux.1: one pass with the guidance scale as an input (dev), or without guidance (schnell)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.chain import Condition, sent
from diffusion.families.family import ATTENTION, Family, image_shift

JOINT = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class TokenFamily(Family):
    """Pipelines whose denoiser takes 2 x 2 patches of latents as tokens (B, h w / 4, 4 C)."""

    channels_per_latent = 4

    @property
    def multiple(self) -> int:
        return int(2 * self.pipe.vae_scale_factor)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = 2 * self.pipe.vae_scale_factor
        height, width = 2 * (self.height // side), 2 * (self.width // side)
        return self.pipe.transformer.config.in_channels // 4, height, width

    @property
    def tokens(self) -> int:
        """Image tokens that the denoiser sees."""
        _, height, width = self.latent_shape
        return (height // 2) * (width // 2)

    def schedule(self, num_inference_steps: int) -> dict[str, Any]:
        return {
            "sigmas": np.linspace(1.0, 1 / num_inference_steps, num_inference_steps).tolist(),
            "mu": image_shift(self.pipe.scheduler, self.tokens),
        }


def pack(latents: Tensor) -> Tensor:
    """(B, C, h, w) as tokens (B, h w / 4, 4 C), each a 2 x 2 patch."""
    b, c, h, w = latents.shape
    patches = latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack(tokens: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Undo `pack`; `shape` is (C, h, w)."""
    c, h, w = shape
    patches = tokens.view(len(tokens), h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(len(tokens), c, h, w)


class Flux(TokenFamily):
    """`FluxPipeline`."""

    architecture = "flux-1-dev"
    lora_targets = {
        "attention": JOINT,
        "all": (
            *JOINT, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
            "proj_mlp", "proj_out",
        ),
    }  # fmt: skip
    # The pipeline's defaults, for dev.
    recommended = {"num_inference_steps": 28, "guidance_scale": 3.5}
    guided_by_input = True  # a negative prompt has no part in it

    @classmethod
    def recommended_for(
        cls, name: str, index: Mapping[str, Any], denoiser: Mapping[str, Any]
    ) -> dict[str, Any]:
        schnell = denoiser.get("guidance_embeds") is False  # its card: 4 steps
        return {"num_inference_steps": 4, "guidance_scale": 1.0} if schnell else cls.recommended

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        length = self.max_sequence_length
        embeds, pooled, _ = self.pipe.encode_prompt(
            prompts,
            None,
            device=device,
            **({} if length is None else {"max_sequence_length": length}),
        )
        return {"text": embeds, "pooled": pooled}

    def reader(self) -> tuple[Any, int]:
        return self.pipe.tokenizer_2, self.max_length()  # CLIP gives one pooled vector

    def call(
        self, net: torch.nn.Module, x_t: Tensor, t: Tensor, cond: Condition, guidance_scale: float
    ) -> Tensor:
        _, height, width = self.latent_shape
        embedded = net.config.guidance_embeds
        guidance = torch.full((len(x_t),), guidance_scale, device=x_t.device) if embedded else None
        like = {"device": "cpu", "dtype": cond["text"].dtype}
        places = self.pipe._prepare_latent_image_ids(1, height // 2, width // 2, **like)
        out = net(
            hidden_states=pack(x_t).to(net.dtype),
            timestep=t.to(net.dtype) / 1000,
            guidance=guidance,
            pooled_projections=cond["pooled"],
            encoder_hidden_states=cond["text"],
            txt_ids=cond["text"].new_zeros(cond["text"].shape[1], 3),
            img_ids=sent(places, x_t.device),
            return_dict=False,
        )[0]
        return unpack(out, self.latent_shape)
