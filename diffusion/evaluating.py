"""Images of held-out prompts, and what is measured of a policy by them.

The noise is the same every time. Flow models are evaluated as they are used: by the ODE.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.drawing import Drawing, Drawn
from diffusion.guards.diversity import small_pixels, within_group
from diffusion.guards.forward_kl import policy_kl
from diffusion.ranks import Share
from diffusion.streams import EVALUATION, KL_EVALUATION, SEVERAL, generators

ALIKE, PROMPTS_ALIKE = 4, 8  # images of a prompt, and most prompts, that diversity is measured of
PICTURES = 16  # images that are shown


@dataclass(frozen=True)
class Held:
    """Images of M held-out prompts, among the processes of a run.

    Attributes:
        images: (H, 3, H, W) those that this process holds.
        share: who holds which of the M images.
        prompts: M.
    """

    images: Tensor
    share: Share
    prompts: list[str]

    def pictures(self) -> Tensor:
        """All images in a run of one process; of several, the first `PICTURES` in the first
        process, and none in others."""
        return self.share.first(self.images, PICTURES)

    def some(self, items: Tensor) -> Held:
        """The images of some prompts."""
        return Held(self.images, self.share.items(items), [self.prompts[i] for i in items.tolist()])


def draw_held_out(drawing: Drawing, prompts: list[str]) -> tuple[Held, dict[str, float]]:
    """One image of each prompt by the weights that are in place, and measures of the policy."""
    policy, cfg = drawing.policy, drawing.config
    with policy.full_size():
        drawn = _drawn(drawing, prompts, 1, EVALUATION)
        streams = generators(cfg.seed, KL_EVALUATION, 0, range(len(prompts)))
        apart = policy_kl(
            policy,
            drawn.chain.sample,
            drawn.cond,
            streams,
            batch=drawing.batch,
            group=drawn.dealt.group,
            share=drawn.share,
        )
        measures = {"kl_forward": float(apart.mean())} | _alike(drawing, prompts)
        images = policy.decode(drawn.chain.sample.float())
    return Held(images, drawn.share, prompts), measures


def diversity(images: Tensor, share: Share, group: Tensor) -> float:
    """`within_group` of images (H, 3, H, W) that processes hold, of the groups (M,)."""
    return within_group(share.gather(small_pixels(images)), group, lambda features: features)


def _alike(drawing: Drawing, prompts: list[str]) -> dict[str, float]:
    """Diversity of four images of each of a few prompts: one prompt in 16 of an evaluation."""
    some = prompts[: min(len(prompts) // 16, PROMPTS_ALIKE)]
    if not some:
        return {}
    drawn = _drawn(drawing, some, ALIKE, SEVERAL)
    images = drawing.policy.decode(drawn.chain.sample.float())
    group = torch.arange(len(some)).repeat_interleave(ALIKE)
    return {"diversity": diversity(images, drawn.share, group)}


def _drawn(drawing: Drawing, prompts: list[str], copies: int, purpose: int) -> Drawn:
    process = drawing.process_of_evaluations()
    predict = drawing.policy.predict
    return drawing.draw(prompts, copies, purpose, 0, process, predict=predict, path=False)
