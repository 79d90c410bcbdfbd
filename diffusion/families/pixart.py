"""PixArt-alpha and PixArt-sigma: diffusion transformers that predict the noise."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.chain import Condition
from diffusion.families.family import ATTENTION, Family


class PixArt(Family):
    """`PixArtAlphaPipeline` and `PixArtSigmaPipeline`; sampled by DDIM on their own schedule."""

    flow = False
    architecture = "pixart"
    lora_targets = {
        "attention": ATTENTION,
        "all": (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "linear"),
    }
    # The pipeline's defaults.
    recommended = {"num_inference_steps": 20, "guidance_scale": 4.5}

    @property
    def default_size(self) -> int:
        return int(self.pipe.transformer.config.sample_size * self.pipe.vae_scale_factor)

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        length = self.max_sequence_length
        embeds, mask, _, _ = self.pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=device,
            **({} if length is None else {"max_sequence_length": length}),
        )
        return {"text": embeds, "mask": mask}

    def count_tokens(self, prompts: list[str]) -> list[int]:
        return super().count_tokens([prompt.lower().strip() for prompt in prompts])

    def call(
        self, net: torch.nn.Module, x_t: Tensor, t: Tensor, cond: Condition, guidance_scale: float
    ) -> Tensor:
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if net.config.sample_size == 128 and type(self.pipe).__name__ == "PixArtAlphaPipeline":
            numbers = (self.height, self.width, self.height / self.width)
            # Filled in where the network computes: a tensor of a list would be copied there.
            column = cond["text"].new_empty(len(x_t), 1)
            height, width, ratio = (torch.full_like(column, number) for number in numbers)
            sizes = {"resolution": torch.cat([height, width], 1), "aspect_ratio": ratio}
        out = net(
            x_t.to(net.dtype),
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"],
            timestep=t,
            added_cond_kwargs=sizes,
            return_dict=False,
        )[0]
        return out[:, : x_t.shape[1]]  # a learnt variance comes after
