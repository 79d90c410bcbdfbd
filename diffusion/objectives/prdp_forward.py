"""PRDP on the forward process: reward differences against differences of denoising losses.

The log-ratio of a whole chain is replaced by that of the noised clean image, at S draws of (t, eps)
that the images of a prompt share:

    r_s  = -(l_theta - l_ref) / (2 w)   at draw s;   r = mean over s
    loss = PRDP's, on r: pairs of one prompt, each r_s clipped around its value at the rollout

With one draw, no clip and the pair's mean taken out, it is what is called centred reward
distillation. Any sampler may draw the images, with any number of steps and without noise.

Units. With the weight "elbo", D r estimates log p(x_0) - log p_ref(x_0) in nats, by the evidence
lower bounds. At the KL-regularised optimum p_ref exp(R / beta_nats) that is R / beta_nats up to a
constant of the prompt, so r_a - r_b = (R_a - R_b) / beta with

    beta_per_dim = D beta_nats        eps_per_dim = eps_nats / D

There is no factor T as in trajectory PRDP: the mean over draws estimates an integral over t, and is
no sum over steps. With "simple" beta is in the unit of the training loss and has no such meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffusion.forward import Denoised
from diffusion.objective import Rollouts
from diffusion.prdp import PRDP


@dataclass(frozen=True)
class PRDPForward:
    """PRDP on denoising losses. beta, clip: per dimension; weight: "simple" or "elbo"."""

    beta: float = 3e-5
    clip: float | None = 1e-4
    unit: str = "per_dim"
    weight: str = "simple"
    draws: int = 4
    terms_per_draw = 1
    anchor = False
    linear = False
    held_by = "beta"

    def __post_init__(self) -> None:
        self._loss(1)  # raises for constants that cannot be

    def _loss(self, dimensions: int) -> PRDP:
        if self.unit != "nats":
            return PRDP(self.beta, self.clip, self.unit)
        clip = None if self.clip is None else self.clip / dimensions
        return PRDP(self.beta * dimensions, clip)

    def terms(self, denoised: Denoised) -> Tensor:
        """(M,) -l / (2 w)."""
        return -denoised.loss() * denoised.half_weight(self.weight)

    def __call__(self, table: Tensor, rollouts: Rollouts) -> tuple[Tensor, dict[str, float]]:
        """Loss (scalar, float64) and metrics for a table (M, S) of `terms`."""
        loss, metrics = self._loss(rollouts.dimensions)(table, rollouts)
        return loss, {name.replace("prdp/", "prdp_forward/"): v for name, v in metrics.items()}
