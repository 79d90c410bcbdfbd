"""V(x_t, level, prompt): the reward that a pipeline's unfinished image is going to have.

A regression of the finished image's reward on the latents of the chain that drew it, so V is the
mean reward over what is still to be drawn. The pipeline is a black box: V sees its latents, its
predictions of x_0 and what its encoders say of the prompt.

    value = load_value("runs/iv/value")
    value.require_fits(policy)                        # an ImagePolicy
    text = value.text(policy.encode(prompts))         # once for each prompt
    v = value(x_t, level, text[rows], x0_hat)         # (B,), in the reward's units

Shapes: B latents (C, h, w), N prompts of K vectors of the network's width W.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BaseModel, ConfigDict, FiniteFloat
from torch import Tensor, nn

from diffusion.chain import Condition
from diffusion.errors import InputError, shown
from diffusion.pipelines import ImagePolicy
from diffusion.values.files import DOCUMENT, checked, read_value, require_fit, write_value
from diffusion.values.network import ValueNetwork
from diffusion.values.text import read_text, said

UNFINISHED = "unfinished"  # in `meta` while the run that learns the value has not come to its end
_Size = Annotated[int, Ge(1), Le(1 << 20)]


@dataclass(frozen=True)
class ValueAbout:
    """What a value is of.

    Attributes:
        pipeline: class of the pipeline whose chains it learnt from.
        latent_shape: (C, h, w).
        text: D of every part of a prompt's condition that it reads, by name.
        reward: the expression of the reward.
        mean, std: of the reward in training; the network computes in these units.
        width, blocks: of the network.
        drawn: how the chains were drawn: model, lora, unet, num_inference_steps, guidance_scale,
            negative_prompt, sampler, noise_level, eta and scheduler.
        held_out: what it reaches on prompts that it has not seen: a row for each level, with
            "level", "rank_correlation" (within prompts, Spearman's) and "r2".
    """

    pipeline: str
    latent_shape: tuple[int, int, int]
    text: dict[str, int]
    reward: str
    mean: float = 0.0
    std: float = 1.0
    width: int = 64
    blocks: int = 3
    drawn: dict[str, Any] = field(default_factory=dict)
    held_out: tuple[dict[str, float], ...] = ()


class ImageValue(nn.Module):
    """The value of unfinished images of one pipeline, latent shape and reward.

    Args:
        about: what it is of.

    Attributes:
        meta: what else its document says, such as how many steps it learnt.
    """

    def __init__(self, about: ValueAbout) -> None:
        super().__init__()
        self.about, self.meta = about, dict[str, Any]()
        self.network = ValueNetwork(
            about.latent_shape, about.text, width=about.width, blocks=about.blocks
        )

    def text(self, cond: Condition) -> Tensor:
        """What N prompts say (N, K, W), from their condition as `ImagePolicy.encode` returns it.

        It is paid once a prompt.

        Raises:
            InputError: it is of other encoders.
        """
        sizes = {name: part.shape[-1] for name, part in read_text(cond).items()}
        if sizes != self.about.text:
            raise InputError(
                f"this value reads prompts of encoders with the sizes {said(self.about.text)}, and "
                f"this pipeline's have {said(sizes)}: train one for it with `genpol value --model`"
            )
        return self.network.text(cond)

    def forward(
        self, x_t: Tensor, level: Tensor | float, text: Tensor, x0_hat: Tensor | None = None
    ) -> Tensor:
        """(B,) float32, in the reward's units.

        Args:
            x_t: (B, C, h, w) unfinished latents.
            level: (B,) or one number, see `diffusion.values.levels`.
            text: (B, K, W) of `text`, a row for each latent.
            x0_hat: (B, C, h, w) the prediction of x_0 by the step that led to x_t, which costs
                nothing while a chain is drawn. None before the first step.
        """
        at = torch.as_tensor(level, dtype=torch.float32, device=x_t.device).expand(len(x_t))
        return self.about.mean + self.about.std * self.network(x_t, at, text, x0_hat)

    def require_fits(self, policy: ImagePolicy) -> None:
        """Check that it is a value of this pipeline.

        Raises:
            InputError: it is of another class of pipelines, or of latents of another shape.
        """
        kind, about = type(policy.pipe).__name__, self.about
        if kind != about.pipeline:
            raise InputError(
                f"this value is of a {shown(about.pipeline)}, and the pipeline is a {kind}: train "
                "one for it with `genpol value --model`"
            )
        if tuple(policy.latent_shape) != tuple(about.latent_shape):
            raise InputError(
                f"this value is of latents {about.latent_shape}, and the pipeline's are "
                f"{tuple(policy.latent_shape)}: draw at the size that it was trained at (--height, "
                "--width), or train one for this size"
            )

    def save(self, folder: str | Path) -> Path:
        """Write it into a folder, as `load_value` reads it; returns the folder.

        Raises:
            OSError: the disk refuses; what was there stays.
            Diverged: a weight is NaN or infinite; nothing is written.
        """
        write_value(Path(folder), self.state_dict(), asdict(self.about), self.meta)
        return Path(folder)


def load_value(folder: str | Path, device: str | torch.device = "cpu") -> ImageValue:
    """The value that `genpol value --model` or `ImageValue.save` left, ready to be asked.

    One whose run is unfinished is loaded with a warning.

    Args:
        folder: of the value, or of the run, which has it in value/.
        device: where it computes.

    Raises:
        InputError: there is none, a file is missing, torn or of another format, the two do not fit
            together, or a weight is NaN or infinite.
    """
    folder = Path(folder)
    if not (folder / DOCUMENT).is_file() and (folder / "value" / DOCUMENT).is_file():
        folder = folder / "value"
    found, meta, tensors = read_value(folder)
    entries = checked(_About, found, folder / DOCUMENT).model_dump()
    about = ValueAbout(**entries)
    with torch.device("meta"):  # what asks for too much is refused before it is allocated
        require_fit(ImageValue(about).state_dict(), tensors, folder)
    value = ImageValue(about)
    value.load_state_dict(tensors)
    value.meta = meta
    if UNFINISHED in meta:
        warnings.warn(
            f"the run that trains the value in {folder} is unfinished, it has taken "
            f"{shown(meta[UNFINISHED])}: go on with its --resume",
            stacklevel=2,
        )
    return value.eval().requires_grad_(False).to(device)


class _About(BaseModel):
    """`ValueAbout`, as a file has it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    pipeline: str
    latent_shape: tuple[_Size, _Size, _Size]
    text: Annotated[dict[str, _Size], MinLen(1)]
    reward: str
    mean: FiniteFloat
    std: Annotated[FiniteFloat, Gt(0)]
    width: Annotated[int, Ge(1), Le(65_536)]
    blocks: Annotated[int, Ge(1), Le(256)]
    drawn: dict[str, Any]
    held_out: tuple[dict[str, float], ...]
