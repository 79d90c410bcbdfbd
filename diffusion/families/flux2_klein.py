"""Flux.2 klein: a small Flux.2 with Qwen3 as text encoder; distilled, or with guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from diffusion.chain import Condition, sent
from diffusion.families.family import in_chat
from diffusion.families.flux import JOINT, TokenFamily


class Flux2Klein(TokenFamily):
    """`Flux2KleinPipeline`. Latents are those after patchifying: (4 C, h / 2, w / 2)."""

    architecture = "flux-2-klein"
    lora_targets = {
        "attention": (*JOINT, "to_qkv_mlp_proj"),
        "all": (
            *JOINT, "to_qkv_mlp_proj",
            "ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out",
        ),
    }  # fmt: skip
    # The pipeline's defaults, for the base model.
    recommended = {"num_inference_steps": 50, "guidance_scale": 4.0}

    @classmethod
    def recommended_for(
        cls, name: str, index: Mapping[str, Any], denoiser: Mapping[str, Any]
    ) -> dict[str, Any]:
        distilled = bool(index.get("is_distilled"))  # its card: 4 steps
        return {"num_inference_steps": 4, "guidance_scale": 1.0} if distilled else cls.recommended

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = 2 * self.pipe.vae_scale_factor
        return self.pipe.transformer.config.in_channels, self.height // side, self.width // side

    @property
    def tokens(self) -> int:
        _, height, width = self.latent_shape
        return height * width

    def schedule(self, num_inference_steps: int) -> dict[str, Any]:
        return {
            "sigmas": np.linspace(1.0, 1 / num_inference_steps, num_inference_steps).tolist(),
            "mu": compute_empirical_mu(self.tokens, num_inference_steps),
        }

    def guided(self, scale: float) -> bool:
        return scale > 1 and not self.pipe.config.is_distilled

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        length = self.max_sequence_length
        embeds, ids = self.pipe.encode_prompt(
            prompts, device, **({} if length is None else {"max_sequence_length": length})
        )
        return {"text": embeds, "text_ids": ids}

    def count_tokens(self, prompts: list[str]) -> list[int]:
        return super().count_tokens(in_chat(self.pipe.tokenizer, prompts, thinking=False))

    def call(
        self, net: torch.nn.Module, x_t: Tensor, t: Tensor, cond: Condition, guidance_scale: float
    ) -> Tensor:
        out = net(
            hidden_states=self.pipe._pack_latents(x_t).to(net.dtype),
            timestep=t.to(net.dtype) / 1000,
            guidance=None,
            encoder_hidden_states=cond["text"],
            txt_ids=cond["text_ids"],
            img_ids=sent(self.pipe._prepare_latent_ids(x_t), x_t.device),
            return_dict=False,
        )[0]
        return out.permute(0, 2, 1).reshape(x_t.shape)

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        mean = vae.bn.running_mean.view(1, -1, 1, 1).to(latents)
        var = vae.bn.running_var.view(1, -1, 1, 1).to(latents)
        z = latents * (var + vae.config.batch_norm_eps).sqrt() + mean
        return vae.decode(self.pipe._unpatchify_latents(z), return_dict=False)[0]

    @property
    def image_size(self) -> tuple[int, int]:
        height, width = super().image_size
        return 2 * height, 2 * width

    def encode_image(self, images: Tensor) -> Tensor:
        vae = self.pipe.vae
        z = self.pipe._patchify_latents(vae.encode(images).latent_dist.mode())
        mean = vae.bn.running_mean.view(1, -1, 1, 1).to(z)
        var = vae.bn.running_var.view(1, -1, 1, 1).to(z)
        return (z - mean) / (var + vae.config.batch_norm_eps).sqrt()
