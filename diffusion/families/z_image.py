"""Z-Image: time runs the other way, the velocity has the other sign, prompts have their length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffusion.chain import Condition
from diffusion.families.family import Family, image_shift, in_chat

ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")


class ZImage(Family):
    """`ZImagePipeline`. Prompts are padded for storing, and cut to their length for the call.

    Guidance here is 1 + the pipeline's `guidance_scale`: pos + (s - 1) (pos - neg), so that 1 is
    none, as everywhere else.
    """

    architecture = "z-image"
    lora_targets = {
        "attention": ATTENTION,
        "all": (*ATTENTION, "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    }
    # Within the base model's card: 28 to 50 steps, the pipeline's guidance_scale 3 to 5.
    recommended = {"num_inference_steps": 28, "guidance_scale": 5.0}

    @classmethod
    def recommended_for(
        cls, name: str, index: Mapping[str, Any], denoiser: Mapping[str, Any]
    ) -> dict[str, Any]:
        turbo = "turbo" in name.lower()  # the pipeline's example: 8 steps, its guidance_scale 0
        return {"num_inference_steps": 8, "guidance_scale": 1.0} if turbo else cls.recommended

    @property
    def default_size(self) -> int:
        return 1024

    @property
    def multiple(self) -> int:
        return int(2 * self.pipe.vae_scale_factor)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = 2 * self.pipe.vae_scale_factor
        height, width = 2 * (self.height // side), 2 * (self.width // side)
        return self.pipe.transformer.in_channels, height, width

    def schedule(self, num_inference_steps: int) -> dict[str, Any]:
        _, height, width = self.latent_shape
        sigmas = torch.linspace(1.0, 1 / num_inference_steps, num_inference_steps).tolist()
        tokens = (height // 2) * (width // 2)
        return {"sigmas": sigmas, "mu": image_shift(self.pipe.scheduler, tokens)}

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        length = self.max_length()
        embeds, _ = self.pipe.encode_prompt(
            list(prompts), device, do_classifier_free_guidance=False, max_sequence_length=length
        )
        mask = torch.zeros(len(embeds), length, dtype=torch.bool)  # on the CPU, which is to read it
        padded = embeds[0].new_zeros(len(embeds), length, embeds[0].shape[-1])
        for i, row in enumerate(embeds):
            padded[i, : len(row)], mask[i, : len(row)] = row, True
        return {"text": padded, "mask": mask}

    def max_length(self) -> int:
        return self.max_sequence_length or 512

    def count_tokens(self, prompts: list[str]) -> list[int]:
        return super().count_tokens(in_chat(self.pipe.tokenizer, prompts, thinking=True))

    def call(
        self, net: torch.nn.Module, x_t: Tensor, t: Tensor, cond: Condition, guidance_scale: float
    ) -> Tensor:
        lengths = cond["mask"].sum(1).tolist()
        texts = [text[:length] for text, length in zip(cond["text"], lengths, strict=True)]
        images = list(x_t.to(net.dtype)[:, :, None].unbind(0))
        outputs = net(images, (1000 - t) / 1000, texts, return_dict=False)[0]
        return -torch.stack([output.float() for output in outputs])[:, :, 0]
