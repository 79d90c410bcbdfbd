"""Drawing with a pipeline of any family, as fine-tuning does in its evaluations."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion.families.family import Family
    from diffusion.process import ReverseProcess


class Drawn:
    """A pipeline of a family, ready to draw.

    Args:
        pipe: the pipeline, its LoRA loaded.
        kind: its family.
        device: where the networks compute.
        call: num_inference_steps, guidance_scale, negative_prompt and eta.
        sizes: height, width and max_sequence_length, None for the pipeline's.
        sampler, noise_level: of flow models.

    Attributes:
        by_pipeline: whether images are left to the pipeline's own call.
        size: height and width, where they were given.

    Raises:
        InputError: a size that the pipeline cannot draw, or a noise level out of range.
    """

    def __init__(
        self,
        pipe: Any,
        kind: type[Family],
        device: str,
        call: dict[str, Any],
        sizes: dict[str, int | None],
        *,
        sampler: str,
        noise_level: float,
    ) -> None:
        from diffusion.errors import InputError
        from diffusion.pipelines import ImagePolicy

        self.policy = ImagePolicy(
            pipe,
            guidance_scale=call["guidance_scale"],
            negative_prompt=call["negative_prompt"],
            train="nothing",
            device=device,
            family=kind,
            height=sizes["height"],
            width=sizes["width"],
            max_sequence_length=sizes["max_sequence_length"],
        )
        if sampler != "ode" and not kind.flow:
            raise InputError(
                f"--sampler {sampler} is for flow models, and this is a diffusion model: choose "
                "how it is sampled with --scheduler and --eta"
            )
        self.by_pipeline = kind.own_call
        self._steps = call["num_inference_steps"]
        self._how = {"eta": call["eta"], "sampler": sampler, "noise_level": noise_level}
        if not self.by_pipeline:
            self.process = self.process_with()
        self.size = {name: sizes[name] for name in ("height", "width") if sizes[name]}

    def process_with(self, steps: int | None = None) -> ReverseProcess:
        """How pictures are drawn, in another number of steps where one is given."""
        return self.policy.process(steps or self._steps, **self._how)

    def in_pieces(self) -> AbstractContextManager[None]:
        """Within this context the pipeline's own call decodes no more than fits at a time."""
        from diffusion.decoding import in_pieces

        return in_pieces(getattr(self.policy.pipe, "vae", None), self.policy.family.image_size)

    def __call__(self, prompts: list[str], seeds: list[int]) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] on the CPU."""
        import torch

        from diffusion.chain import DenoisingChain, sample_chain

        policy, steps = self.policy, self.process.num_steps
        room: dict[str, Any] = {"device": policy.device, "path": False}
        chain = sample_chain(
            policy.predict,
            self.process,
            policy.encode(prompts),
            policy.latent_shape,
            [torch.Generator().manual_seed(seed) for seed in seeds],
            device=policy.device,
            into=DenoisingChain.empty(len(seeds), policy.latent_shape, steps, **room),
        )
        return policy.decode(chain.sample)
