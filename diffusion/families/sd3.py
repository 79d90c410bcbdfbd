"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffusion.chain import Condition
from diffusion.families.family import ATTENTION, Family, image_shift


class SD3(Family):
    """`StableDiffusion3Pipeline`: two CLIP encoders and T5, whose part is zeros where it is absent.

    Without T5 the zeros still take `max_sequence_length` tokens (256 by default): models that were
    trained with them need them.
    """

    may_lack = ("text_encoder_3", "tokenizer_3")
    architecture = "stable-diffusion-3"
    lora_targets = {
        "attention": (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        "all": (
            *ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
            "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
        ),
    }  # fmt: skip
    # The pipeline's steps; the guidance of Flow-GRPO and of the card of 3.5 Medium.
    recommended = {"num_inference_steps": 28, "guidance_scale": 4.5}

    @property
    def largest(self) -> int:
        # Places are cut out of the middle of a square of this many patches.
        return int(self.pipe.transformer.config.pos_embed_max_size * self.multiple)

    @classmethod
    def recommended_for(
        cls, name: str, index: Mapping[str, Any], denoiser: Mapping[str, Any]
    ) -> dict[str, Any]:
        turbo = "turbo" in name.lower()  # its card: 4 steps without guidance
        return {"num_inference_steps": 4, "guidance_scale": 1.0} if turbo else cls.recommended

    def schedule(self, num_inference_steps: int) -> dict[str, Any]:
        if not self.pipe.scheduler.config.get("use_dynamic_shifting"):
            return {}
        patch = self.pipe.transformer.config.patch_size
        _, height, width = self.latent_shape
        return {"mu": image_shift(self.pipe.scheduler, (height // patch) * (width // patch))}

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        length = self.max_sequence_length
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompts,
            None,
            None,
            device=device,
            do_classifier_free_guidance=False,
            **({} if length is None else {"max_sequence_length": length}),
        )
        return {"text": embeds, "pooled": pooled}

    def reader(self) -> tuple[Any, int]:
        clip = self.pipe.tokenizer, self.pipe.tokenizer_max_length
        t5 = self.pipe.tokenizer_3, self.max_length()
        return clip if self.pipe.text_encoder_3 is None or t5[1] < clip[1] else t5

    def call(
        self, net: torch.nn.Module, x_t: Tensor, t: Tensor, cond: Condition, guidance_scale: float
    ) -> Tensor:
        return net(
            hidden_states=x_t.to(net.dtype),
            timestep=t,
            encoder_hidden_states=cond["text"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )[0]
