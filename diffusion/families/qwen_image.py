"""Qwen-Image: guidance keeps the length of the conditional velocity, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.chain import Condition, sent
from diffusion.families.flux import JOINT, TokenFamily, pack, unpack


class QwenImage(TokenFamily):
    """`QwenImagePipeline`. Prompts are padded to the longest, and what is padding is masked.

    Its guidance is the pipeline's `true_cfg_scale`.
    """

    architecture = "qwen-image"
    lora_targets = {
        "attention": JOINT,
        "all": (
            *JOINT, "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
        ),
    }  # fmt: skip
    # The pipeline's defaults; its negative prompt is a space, see `encode_negative`.
    recommended = {"num_inference_steps": 50, "guidance_scale": 4.0}

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        length = self.max_length()
        embeds, mask = self.pipe.encode_prompt(prompts, device, max_sequence_length=length)
        if mask is None:  # all of one length
            mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        return {"text": embeds, "mask": mask.cpu()}  # where each call reads it

    def max_length(self) -> int:
        return self.max_sequence_length or 512

    def count_tokens(self, prompts: list[str]) -> list[int]:
        template, dropped = (
            self.pipe.prompt_template_encode,
            self.pipe.prompt_template_encode_start_idx,
        )
        counts = super().count_tokens([template.format(prompt) for prompt in prompts])
        return [count - dropped for count in counts]

    def encode_negative(self, prompts: list[str], device: torch.device) -> Condition:
        # An empty one counts as none for the pipeline: its examples pass a space.
        return self.encode([prompt or " " for prompt in prompts], device)

    def call(
        self, net: torch.nn.Module, x_t: Tensor, t: Tensor, cond: Condition, guidance_scale: float
    ) -> Tensor:
        _, height, width = self.latent_shape
        embedded = net.config.guidance_embeds
        guidance = torch.full((len(x_t),), guidance_scale, device=x_t.device) if embedded else None
        mask = None if bool(cond["mask"].all()) else sent(cond["mask"], x_t.device)
        out = net(
            hidden_states=pack(x_t).to(net.dtype),
            timestep=t.to(net.dtype) / 1000,
            guidance=guidance,
            encoder_hidden_states_mask=mask,
            encoder_hidden_states=cond["text"],
            img_shapes=[[(1, height // 2, width // 2)]] * len(x_t),
            return_dict=False,
        )[0]
        return unpack(out, self.latent_shape)

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        one, other = pack(conditional), pack(unconditional)
        both = other + scale * (one - other)
        length = one.norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return unpack(both * length, self.latent_shape)

    def decode(self, latents: Tensor) -> Tensor:
        config = self.pipe.vae.config
        shape = (1, config.z_dim, 1, 1, 1)
        mean = torch.tensor(config.latents_mean).view(shape).to(latents)
        std = torch.tensor(config.latents_std).view(shape).to(latents)
        return self.pipe.vae.decode(latents[:, :, None] * std + mean, return_dict=False)[0][:, :, 0]

    def encode_image(self, images: Tensor) -> Tensor:
        config = self.pipe.vae.config
        z = self.pipe.vae.encode(images[:, :, None]).latent_dist.mode()[:, :, 0]
        mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1).to(z)
        std = torch.tensor(config.latents_std).view(1, -1, 1, 1).to(z)
        return (z - mean) / std
