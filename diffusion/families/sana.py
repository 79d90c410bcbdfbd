"""Sana: linear attention on latents that are 32 times smaller than the image."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.chain import Condition
from diffusion.families.family import ATTENTION, Family


class Sana(Family):
    """`SanaPipeline`. Its usual scheduler, DPM-Solver on the flow's sigmas, has no step densities:
    it becomes the Euler scheduler with the same shift."""

    architecture = "sana"
    lora_targets = {
        "attention": ATTENTION,
        "all": (*ATTENTION, "conv_inverted", "conv_point"),
    }
    # The pipeline's defaults.
    recommended = {"num_inference_steps": 20, "guidance_scale": 4.5}

    @property
    def default_size(self) -> int:
        size = self.pipe.transformer.config.sample_size
        return int(size * self.pipe.vae_scale_factor)

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        return self._encode(prompts, device, instructed=True)

    def encode_negative(self, prompts: list[str], device: torch.device) -> Condition:
        return self._encode(prompts, device, instructed=False)

    def _encode(self, prompts: list[str], device: torch.device, instructed: bool) -> Condition:
        length = self.max_length()
        # The pipeline's own call puts its long instruction before a prompt, and none before a
        # negative one.
        instruction = SANA_INSTRUCTION if instructed else None
        embeds, mask, _, _ = self.pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=device,
            max_sequence_length=length,
            complex_human_instruction=instruction,
        )
        return {"text": embeds, "mask": mask}

    def max_length(self) -> int:
        return self.max_sequence_length or 300

    def count_tokens(self, prompts: list[str]) -> list[int]:
        instruction = "\n".join(SANA_INSTRUCTION)
        before = len(self.pipe.tokenizer.encode(instruction)) - 2  # as the pipeline counts it
        texts = [instruction + prompt.lower().strip() for prompt in prompts]
        counts = super().count_tokens(texts)
        return [count - before for count in counts]

    def call(
        self, net: torch.nn.Module, x_t: Tensor, t: Tensor, cond: Condition, guidance_scale: float
    ) -> Tensor:
        out = net(
            x_t.to(net.dtype),
            encoder_hidden_states=cond["text"].to(net.dtype),
            encoder_attention_mask=cond["mask"],
            timestep=t * net.config.timestep_scale,
            return_dict=False,
        )[0]
        return out[:, : x_t.shape[1]]  # a learnt variance, if any, comes after

    def encode_image(self, images: Tensor) -> Tensor:
        # Its autoencoder is deterministic.
        vae = self.pipe.vae
        return vae.encode(images, return_dict=False)[0] * vae.config.scaling_factor


def _instruction() -> list[str]:
    """What the pipeline's own call puts before a prompt: the default of its argument."""
    import inspect

    from diffusers import SanaPipeline

    call = inspect.signature(SanaPipeline.__call__)
    return list(call.parameters["complex_human_instruction"].default)


SANA_INSTRUCTION = _instruction()
