"""What a family of pipelines is: how to encode prompts, call the denoiser and decode latents.

A family knows one pipeline class of diffusers and nothing of training. Latents are (B, C, h, w), as
the scheduler steps them; a family that packs them into tokens does so around its call, and unpacks
what comes back. Drawing noise in that shape, image by image, gives the pipeline's own images for
the same generators.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion.chain import Condition

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


class Family:
    """A loaded pipeline, called the way its class calls itself.

    Args:
        pipe: the pipeline.
        height, width: of the images in pixels; None for the pipeline's default.
        max_sequence_length: tokens that prompts are padded or cut to, where the pipeline lets one
            choose; None for the pipeline's default.

    Attributes:
        denoiser_name: the component that is trained.
        flow: whether it predicts a velocity, and is sampled by `diffusion/flow.py`.
        guided_by_input: whether the guidance scale is an input of the network (distilled models),
            and no second pass is made.
        channels_per_latent: channels of the network's input for each channel of the latents; 4 for
            those that take patches of 2 x 2.
        may_lack: parts of the pipeline that may be absent (null in its model_index.json).
        architecture: its name in the metadata of LoRA files, as ModelSpec has it.
        lora_targets: layer names for --lora-targets "attention" and "all".
        recommended: settings that differ from the published ones of Stable Diffusion.
        own_call: whether `genpol generate` leaves images to the pipeline's own call, with
            num_inference_steps, guidance_scale, negative_prompt and eta.
        pipeline_class: whose `from_pretrained` loads a folder; None where diffusers knows the
            class that the folder names.
    """

    denoiser_name: ClassVar[str] = "transformer"
    flow: ClassVar[bool] = True
    guided_by_input: bool = False
    channels_per_latent: ClassVar[int] = 1
    may_lack: ClassVar[tuple[str, ...]] = ()
    architecture: str = ""
    lora_targets: ClassVar[dict[str, tuple[str, ...]]] = {"attention": ATTENTION, "all": ATTENTION}
    recommended: ClassVar[dict[str, Any]] = {}
    pipeline_class: ClassVar[type | None] = None
    own_call: ClassVar[bool] = False

    def __init__(
        self,
        pipe: Any,
        *,
        height: int | None = None,
        width: int | None = None,
        max_sequence_length: int | None = None,
    ) -> None:
        self.pipe, self.max_sequence_length = pipe, max_sequence_length
        self.height, self.width = height or self.default_size, width or self.default_size

    @classmethod
    def recommended_for(
        cls, name: str, index: Mapping[str, Any], denoiser: Mapping[str, Any]
    ) -> dict[str, Any]:
        """`recommended` for one checkpoint, of which nothing is loaded yet.

        Args:
            name: as given to --model.
            index: its model_index.json, empty where it could not be read.
            denoiser: the configuration of its denoiser, likewise.
        """
        return cls.recommended

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network that is trained."""
        return getattr(self.pipe, self.denoiser_name)

    @property
    def default_size(self) -> int:
        """Height and width of an image in pixels where none is given."""
        return int(self.pipe.default_sample_size * self.pipe.vae_scale_factor)

    @property
    def multiple(self) -> int:
        """Pixels that height and width must be multiples of: the autoencoder's scale, times a
        patch of the denoiser."""
        patch = self.denoiser.config.get("patch_size") or 1
        return int(self.pipe.vae_scale_factor * patch)

    @property
    def largest(self) -> int | None:
        """The largest side in pixels that the denoiser has places for; None where any will do."""
        return None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        scale = self.pipe.vae_scale_factor
        return self.denoiser.config.in_channels, self.height // scale, self.width // scale

    def schedule(self, num_inference_steps: int) -> dict[str, Any]:
        """What the pipeline passes to its scheduler's `set_timesteps` beside the steps."""
        return {}

    def encode(self, prompts: list[str], device: torch.device) -> Condition:
        """Conditioning of N prompts by the pipeline's own encoders, each value (N, ...)."""
        raise NotImplementedError

    def encode_negative(self, prompts: list[str], device: torch.device) -> Condition:
        """The same of negative prompts, whose meaning may differ where they are empty."""
        return self.encode(prompts, device)

    def reader(self) -> tuple[Any, int]:
        """The tokenizer whose encoder reads the most of a prompt, and how many tokens that are."""
        return self.pipe.tokenizer, self.max_length()

    def max_length(self) -> int:
        """`max_sequence_length`, or the default of the pipeline's own `encode_prompt`."""
        own = inspect.signature(self.pipe.encode_prompt).parameters["max_sequence_length"]
        return self.max_sequence_length or own.default

    def count_tokens(self, prompts: list[str]) -> list[int]:
        """Tokens of N prompts as `encode` reads them, before it cuts any."""
        tokenizer, _ = self.reader()
        # Quiet, since it would warn of each; the caller says it of all.
        found = tokenizer(list(prompts), add_special_tokens=True, truncation=False, verbose=False)
        return [len(ids) for ids in found["input_ids"]]

    def call(
        self, net: torch.nn.Module, x_t: Tensor, t: Tensor, cond: Condition, guidance_scale: float
    ) -> Tensor:
        """One pass of `net`: its output (B, C, h, w) in the convention of the family's process.

        Args:
            net: the denoiser, or a copy of it with other weights.
            x_t: (B, C, h, w) float32.
            t: (B,) the scheduler's timesteps.
            cond: one row per image.
            guidance_scale: for networks that take it as an input.
        """
        raise NotImplementedError

    def guided(self, scale: float) -> bool:
        """Whether this guidance scale means a second pass with the negative prompt."""
        return scale > 1 and not self.guided_by_input

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """The guided output of the two passes."""
        return unconditional + scale * (conditional - unconditional)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in about [-1, 1]; `latents` in the autoencoder's dtype."""
        config = self.pipe.vae.config
        z = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
        return self.pipe.vae.decode(z, return_dict=False)[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of what `decode` makes of one latent."""
        _, height, width = self.latent_shape
        return height * self.pipe.vae_scale_factor, width * self.pipe.vae_scale_factor

    def encode_image(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) that `decode` turns back into the images, up to what the autoencoder
        loses: the mode of its posterior, scaled and shifted as the pipeline's are.

        Args:
            images: (B, 3, H, W) in [-1, 1], of `image_size`, in the autoencoder's dtype.
        """
        config = self.pipe.vae.config
        z = self.pipe.vae.encode(images).latent_dist.mode()
        return (z - (config.get("shift_factor") or 0.0)) * config.scaling_factor


def in_chat(tokenizer: Any, prompts: list[str], thinking: bool) -> list[str]:
    """Each prompt as a user's message of a chat that waits for its answer."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        for prompt in prompts
    ]


def image_shift(scheduler: Any, tokens: int) -> float:
    """mu of resolution-dependent shifting (arXiv 2403.03206, section 5.3.2): linear in the number
    of image tokens between the scheduler's two anchors."""
    get = scheduler.config.get
    first, last = get("base_image_seq_len", 256), get("max_image_seq_len", 4096)
    low, high = get("base_shift", 0.5), get("max_shift", 1.15)
    slope = (high - low) / (last - first)
    return float(tokens * slope + (low - slope * first))
