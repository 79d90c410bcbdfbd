"""Diffusion over action chunks: DDPM with few steps.

Training (DDPM, arXiv 2006.11239 eq. 14): x_t = a_t x_0 + s_t eps, loss = mean_D (eps - eps_hat)^2,
with the discrete variance-preserving schedule of arXiv 2112.07804, with which 10 steps suffice.
Sampling is ancestral; x0_hat is clipped to [-1, 1] at every step where actions lie there:

    x0_hat  = clip((x_t - s_t eps_hat) / a_t)
    x_{t-1} = c_x0 x0_hat + c_x x_t + std z

DDIM (arXiv 2010.02502 eq. 12, eta 0) has the same form with std = 0, if eps is derived anew from
the clipped x0_hat. The coefficients are those of `diffusion.process`.

Shape legend: B observations, T steps, n candidates, D = H * A, F features, M modulations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from diffusion.process import ReverseProcess, reverse_process
from genpol.policies.architecture import Architecture, Sampler
from genpol.policies.denoiser import denoiser
from genpol.policies.precision import Apply, exact
from offline.draws import integers, moved, normal
from offline.errors import InputError

BETA_MIN, BETA_MAX = 0.1, 10.0


def vp_betas(steps: int) -> Tensor:
    """(T,) beta_t = 1 - exp(-beta_min / T - (beta_max - beta_min) (2t - 1) / (2 T^2)), t = 1..T."""
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    exponent = BETA_MIN / steps + (BETA_MAX - BETA_MIN) * (2 * t - 1) / (2 * steps**2)
    return 1 - torch.exp(-exponent)


def action_process(
    steps: int, sampler: Sampler, clip: bool, visited: int | None = None
) -> ReverseProcess:
    """The reverse process: DDPM with the posterior's variance, or DDIM with eta 0.

    DDIM may visit fewer of the steps, evenly spaced from the noisiest on.
    """
    from diffusers import DDIMScheduler, DDPMScheduler

    with torch.device("cpu"):  # a table of numbers, wherever the network is being made
        common = {
            "num_train_timesteps": steps,
            "trained_betas": vp_betas(steps).tolist(),
            "clip_sample": clip,
        }
        if sampler == "ddim":
            scheduler = DDIMScheduler(**common, timestep_spacing="trailing")
            return reverse_process(scheduler, visited or steps, eta=0.0)
        return reverse_process(DDPMScheduler(**common, variance_type="fixed_small"), steps)


@dataclass(frozen=True)
class ChainStep:
    """Coefficients of one step, as in the formulas above."""

    inv_a: float
    """1 / a_t."""
    s_over_a: float
    c_x0: float
    c_x: float
    std: float


def chain_steps(process: ReverseProcess) -> list[ChainStep]:
    """The steps in sampling order, noisiest first."""
    a, s = process.sqrt_alpha, process.sqrt_noise
    # eps_hat = (x_t - a x0_hat) / s, so its share goes to the other two
    c_x0, c_x = process.c_x0 - process.c_eps * a / s, process.c_xt + process.c_eps / s
    rows = torch.stack([1 / a, s / a, c_x0, c_x, process.std], dim=-1)
    return [ChainStep(*row) for row in rows.tolist()]


class DiffusionHead(nn.Module):
    """p(x | features) as a denoising chain.

    Args:
        dim: D.
        features: F.
        architecture: sizes, T and the sampler.
        clip: whether actions lie in [-1, 1].
    """

    a: Tensor
    s: Tensor
    times: Tensor

    def __init__(self, dim: int, features: int, architecture: Architecture, clip: bool) -> None:
        super().__init__()
        self.dim, self.clip, self.sampler = dim, clip, architecture.sampler
        steps = self.num_steps = architecture.denoising_steps
        self.trunk: Any
        self.conditioner: Any
        self.trunk, self.conditioner = denoiser(dim, features, architecture)
        self.process = action_process(steps, "ddpm", clip)
        self.chains = {
            "ddpm": chain_steps(self.process),
            "ddim": chain_steps(action_process(steps, "ddim", clip)),
        }
        self._short: dict[int, tuple[list[ChainStep], Tensor]] = {}
        self.register_buffer("a", self.process.sqrt_alpha.flip(0).float(), persistent=False)
        self.register_buffer("s", self.process.sqrt_noise.flip(0).float(), persistent=False)
        self.register_buffer("times", torch.arange(1, steps + 1) / steps, persistent=False)

    def loss(self, features: Tensor, x: Tensor, generator: Generator | None) -> Tensor:
        """(B, F) and clean (B, D) -> (B,), at one random step each."""
        step = integers(self.num_steps, len(x), generator, x)
        eps = normal(x.shape, generator, x)
        noisy = self.a[step, None] * x + self.s[step, None] * eps
        embedding = self.conditioner.embed(self.times)[step]
        out = self.trunk(noisy, self.conditioner(features, embedding))
        return (out - eps).square().mean(-1)

    def sample(
        self,
        features: Tensor,
        n: int,
        generator: Generator | None,
        apply: Apply = exact,
        steps: int | None = None,
    ) -> Tensor:
        """(B, F) -> (B, n, D); in fewer `steps` it is DDIM that takes them."""
        if steps is not None:
            noise = normal((len(features), n, self.dim), generator, features)
            return self.decode(features, noise, apply, steps)
        draws = self.num_steps if self.sampler == "ddpm" else 1
        noise = normal((draws, len(features), n, self.dim), generator, features)
        return self(features, noise, self.chains[self.sampler], apply)

    def decode(
        self, features: Tensor, noise: Tensor, apply: Apply = exact, steps: int | None = None
    ) -> Tensor:
        """(B, F) and standard normal (B, n, D) -> (B, n, D): DDIM from that noise."""
        if steps is None:
            return self(features, noise[None], self.chains["ddim"], apply)
        chain, visited = self._in(steps)
        return self(features, noise[None], chain, apply, self.times[visited])

    def _in(self, steps: int) -> tuple[list[ChainStep], Tensor]:
        """DDIM's chain of so many steps, and which of the T it visits."""
        if self.num_steps % steps:
            raise InputError(
                f"{steps} steps do not divide the {self.num_steps} that this diffusion policy "
                "learnt: take every second or fifth of them, or a flow"
            )
        if steps not in self._short:
            process = action_process(self.num_steps, "ddim", self.clip, steps)
            self._short[steps] = chain_steps(process), process.timesteps
        chain, visited = self._short[steps]
        if visited.device != self.times.device:
            visited = moved(visited, self.times.device)
            self._short[steps] = chain, visited
        return chain, visited

    def mode(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, D): DDIM from no noise at all."""
        return self.decode(features, features.new_zeros(len(features), 1, self.dim))[:, 0]

    def forward(
        self,
        features: Tensor,
        noise: Tensor,
        chain: list[ChainStep],
        apply: Apply = exact,
        times: Tensor | None = None,
    ) -> Tensor:
        """(B, F) and (draws, B, n, D), the first of which is x_T -> (B, n, D): a whole chain, which
        draws nothing."""
        embedding = self.conditioner.embed(self.times.flip(0) if times is None else times)
        if noise.shape[1] == 1:  # one axis less is faster
            modulations = self.conditioner(features, embedding[:, None], apply)  # (T, 1, M)
            x, *draws = noise[:, 0].unbind()
        else:
            modulations = self.conditioner(features[:, None], embedding[:, None, None], apply)
            x, *draws = noise.unbind()
        for i, (step, modulation) in enumerate(zip(chain, modulations.unbind(), strict=True)):
            eps = self.trunk(x, modulation, apply)
            x0 = x.mul(step.inv_a).sub_(eps, alpha=step.s_over_a)
            if self.clip:
                x0.clamp_(-1, 1)
            x = x.mul(step.c_x).add_(x0, alpha=step.c_x0)
            if step.std:  # none at the last step
                x.add_(draws[i], alpha=step.std)
        return x.view(noise.shape[1:])
