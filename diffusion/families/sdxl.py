"""Stable Diffusion XL."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.chain import Condition
from diffusion.families.stable_diffusion import UNetFamily


class SDXL(UNetFamily):
    """`StableDiffusionXLPipeline`: two text encoders, a pooled embedding and the image's sizes."""

    architecture = "stable-diffusion-xl-v1-base"

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        size = (self.height, self.width)
        ids = self.pipe._get_add_time_ids(
            size,
            (0, 0),
            size,
            dtype=embeds.dtype,
            text_encoder_projection_dim=self.pipe.text_encoder_2.config.projection_dim,
        )
        ids = ids.to(device).expand(len(prompts), -1)
        return {"text": embeds, "pooled": pooled, "time_ids": ids}

    def encode_negative(self, prompts: list[str], device: torch.device) -> Condition:
        cond = self.encode(prompts, device)
        empty = [i for i, prompt in enumerate(prompts) if not prompt]
        if empty and self.pipe.config.force_zeros_for_empty_prompt:
            for name in ("text", "pooled"):
                cond[name] = cond[name].index_fill(0, torch.tensor(empty, device=device), 0)
        return cond

    def call(
        self, net: torch.nn.Module, x_t: Tensor, t: Tensor, cond: Condition, guidance_scale: float
    ) -> Tensor:
        return net(
            x_t.to(net.dtype),
            t,
            encoder_hidden_states=cond["text"],
            added_cond_kwargs={"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]},
            return_dict=False,
        )[0]
