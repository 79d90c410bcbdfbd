"""Denoising chains: draw one with its step log-probs, score a stored one under other weights.

A chain is x_T, x_{T-1}, ..., x_0 with the log-probability of every step, for images and action
sequences alike: a *predictor* maps (x_t, t, condition) to the network's output, guidance included,
and the scheduler's `ReverseProcess` does the rest.

Shapes: B chains, T steps, D dimensions of one x. Log-probs are per-dimension means, in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.process import ReverseProcess

Condition = dict[str, Tensor]  # each (B, ...)
Predictor = Callable[[Tensor, Tensor, Condition], Tensor]  # x_t (B, ...), t (B,), cond -> output


@dataclass
class DenoisingChain:
    """B stored chains.

    x: (T+1, B, ...) from noise to sample, in the storage dtype.
    log_prob: (B, T) float32 under the weights that drew it; 0 at deterministic steps.
    log_prob_ref: (B, T) under the reference, or None.
    kl: (B, T) KL(step || reference step) per dimension, closed form, or None.
    """

    x: Tensor
    log_prob: Tensor
    log_prob_ref: Tensor | None = None
    kl: Tensor | None = None

    @property
    def sample(self) -> Tensor:
        """x_0, (B, ...)."""
        return self.x[-1]

    @property
    def dimensions(self) -> int:
        """D, the number of scalars in one x."""
        return self.x[0, 0].numel()

    def rows(self, rows: Tensor) -> DenoisingChain:
        """Some of the chains."""
        at = rows.to(self.x.device)

        def some(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[at]

        log_prob_ref, kl = some(self.log_prob_ref), some(self.kl)
        return DenoisingChain(self.x[:, at], self.log_prob[at], log_prob_ref, kl)

    @staticmethod
    def concatenate(parts: Sequence[DenoisingChain]) -> DenoisingChain:
        """Join chains along the batch."""

        def join(values: list[Tensor | None], dim: int) -> Tensor | None:
            tensors = [v for v in values if v is not None]
            return torch.cat(tensors, dim) if len(tensors) == len(values) else None

        x = torch.cat([p.x for p in parts], 1)
        log_prob = torch.cat([p.log_prob for p in parts], 0)
        ref, kl = join([p.log_prob_ref for p in parts], 0), join([p.kl for p in parts], 0)
        return DenoisingChain(x, log_prob, ref, kl)


def draw(shape: Sequence[int], generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Standard normals (B, ...), row i from `generators[i]`: a row never depends on its batch.

    The order of draws is that of a `diffusers` pipeline given the same list of generators.
    """
    rows = [
        torch.randn((1, *shape), generator=g, device=g.device, dtype=torch.float32)
        for g in generators
    ]
    return torch.cat(rows).to(like.device)


@torch.no_grad()
def sample_chain(
    predict: Predictor,
    process: ReverseProcess,
    cond: Condition,
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    reference: Predictor | None = None,
    storage_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> DenoisingChain:
    """Draw one chain per generator.

    Every latent is rounded to `storage_dtype` *before* its log-prob is taken, so the stored chain
    scores exactly as drawn: rounding afterwards shifts bf16 log-probs by 5e-4 and more.
    `reference` adds `log_prob_ref` and `kl` at the price of one more forward pass a step.
    """
    like = torch.empty(0, device=device)
    x = draw(shape, generators, like).to(storage_dtype)
    xs, log_probs, refs, kls = [x], [], [], []
    timesteps = process.timesteps.to(device)
    for i in range(process.num_steps):
        step = torch.full((len(generators),), i, device=device)
        t = timesteps[step]
        x_t = x.float()
        mean = process.mean(predict(x_t, t, cond), x_t, step)
        x = mean
        if process.std[i] > 0:
            x = mean + process.std_at(step, mean) * draw(shape, generators, like)
        x = x.to(storage_dtype)
        log_probs.append(process.log_prob(x, mean, step))
        if reference is not None:
            mean_ref = process.mean(reference(x_t, t, cond), x_t, step)
            refs.append(process.log_prob(x, mean_ref, step))
            std = process.std_at(step, mean).clamp_min(1e-12)
            kl = ((mean - mean_ref) / std).square().flatten(1).mean(1) / 2
            kls.append(kl if process.stochastic[i] else torch.zeros_like(kl))
        xs.append(x)
    return DenoisingChain(
        x=torch.stack(xs),
        log_prob=torch.stack(log_probs, 1),
        log_prob_ref=torch.stack(refs, 1) if refs else None,
        kl=torch.stack(kls, 1) if kls else None,
    )


def score_steps(
    predict: Predictor,
    process: ReverseProcess,
    chain: DenoisingChain,
    cond: Condition,
    rows: Tensor,
    steps: Tensor,
) -> Tensor:
    """Log-probs (M,) of M stored steps under `predict`; differentiable in its weights.

    Step m is chain `rows[m]`, step index `steps[m]`; `cond` holds one row per m. A batch may mix
    chains and steps freely, which is what keeps memory independent of T and B.
    """
    device = chain.x.device
    rows, steps = rows.to(device), steps.to(device)
    x_t, x_prev = chain.x[steps, rows].float(), chain.x[steps + 1, rows].float()
    t = process.timesteps.to(device)[steps]
    mean = process.mean(predict(x_t, t, cond), x_t, steps)
    return process.log_prob(x_prev, mean, steps)


def score_chain(
    predict: Predictor,
    process: ReverseProcess,
    chain: DenoisingChain,
    cond: Condition,
) -> Tensor:
    """(B, T) log-probs of whole stored chains under `predict`, one step at a time."""
    batch = chain.x.shape[1]
    rows = torch.arange(batch, device=chain.x.device)
    columns = [
        score_steps(predict, process, chain, cond, rows, torch.full_like(rows, i))
        for i in range(process.num_steps)
    ]
    return torch.stack(columns, 1)
