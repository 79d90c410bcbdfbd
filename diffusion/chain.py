"""Denoising chains: draw one with its step log-probs, score a stored one under other weights.

A chain is x_T, x_{T-1}, ..., x_0 with the log-probability of every step, for images and action
sequences alike: a *predictor* maps (x_t, t, condition) to the network's output, guidance included,
and the scheduler's `ReverseProcess` does the rest.

Shapes: B chains, T steps, D dimensions of one x. Log-probs are per-dimension means, in nats.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import shown
from diffusion.process import ReverseProcess

Condition = dict[str, Tensor]  # each (B, ...)
PINNED = ("cuda",)  # devices to which a copy from page-locked memory does not wait
Predictor = Callable[[Tensor, Tensor, Condition], Tensor]  # x_t (B, ...), t (B,), cond -> output


@dataclass
class DenoisingChain:
    """B stored chains.

    x: (T+1, B, ...) from noise to sample, in the storage dtype; or (1, B, ...), the sample alone.
    log_prob: (B, T) float32 under the weights that drew it; 0 at deterministic steps.
    log_prob_ref: (B, T) under the reference, or None.
    kl: (B, T) KL(step || reference step) per dimension, closed form, or None.
    device: where networks compute, if x waits elsewhere, as in host memory beside a GPU.
    """

    x: Tensor
    log_prob: Tensor
    log_prob_ref: Tensor | None = None
    kl: Tensor | None = None
    device: torch.device | None = None

    @property
    def sample(self) -> Tensor:
        """x_0, (B, ...)."""
        return self.x[-1]

    @property
    def dimensions(self) -> int:
        """D, the number of scalars in one x."""
        return self.x[0, 0].numel()

    def step(self, rows: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t and x_{t-1} (M, ...) float32 of M steps of chains, and the steps (M,), all where
        networks compute. Only the M steps are copied there."""
        device = self.device or self.x.device
        here, place = sent(rows, self.x.device), sent(steps, self.x.device)
        x_t, x_prev = (sent(self.x[i, here], device) for i in (place, place + 1))
        return x_t.float(), x_prev.float(), sent(steps, device)

    def rows(self, rows: Tensor) -> DenoisingChain:
        """Some of the chains."""

        def some(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows.to(values.device)]

        x = self.x[:, rows.to(self.x.device)]
        log_prob = self.log_prob[rows.to(self.log_prob.device)]
        return DenoisingChain(x, log_prob, some(self.log_prob_ref), some(self.kl), self.device)

    def span(self, first: int, last: int) -> DenoisingChain:
        """The chains [first, last); what is written into it is written here."""

        def some(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[first:last]

        x, log_prob = self.x[:, first:last], self.log_prob[first:last]
        return DenoisingChain(x, log_prob, some(self.log_prob_ref), some(self.kl), self.device)

    @staticmethod
    def empty(
        count: int,
        shape: Sequence[int],
        num_steps: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        in_host: bool = False,
        path: bool = True,
        reference: bool = False,
    ) -> DenoisingChain:
        """Room for `count` chains, to be written part by part.

        Args:
            shape: of one x.
            num_steps: T.
            dtype: that x is stored in.
            device: where networks compute.
            in_host: keep x in host memory, page-locked beside a GPU so that copies need not wait.
                PyTorch rounds such memory up to a power of two. Where there is no more of it, plain
                memory does, with a warning.
            path: whether every x is kept, or the sample alone.
            reference: whether there are log-probs under the reference, and the KL from it.
        """
        device = torch.device(device)
        apart = in_host and device.type != "cpu"
        size = (num_steps + 1 if path else 1, count, *shape)
        x = (
            _in_host(size, dtype, device)
            if apart
            else torch.empty(size, dtype=dtype, device=device)
        )
        log_prob, log_prob_ref, kl = torch.zeros(3, count, num_steps, device=device)
        chain = DenoisingChain(x, log_prob, device=device if apart else None)
        if reference:
            chain.log_prob_ref, chain.kl = log_prob_ref, kl
        return chain

    @staticmethod
    def concatenate(parts: Sequence[DenoisingChain]) -> DenoisingChain:
        """Join chains along the batch."""

        def join(values: list[Tensor | None], dim: int) -> Tensor | None:
            tensors = [v for v in values if v is not None]
            return torch.cat(tensors, dim) if len(tensors) == len(values) else None

        x = torch.cat([p.x for p in parts], 1)
        log_prob = torch.cat([p.log_prob for p in parts], 0)
        ref, kl = join([p.log_prob_ref for p in parts], 0), join([p.kl for p in parts], 0)
        return DenoisingChain(x, log_prob, ref, kl, parts[0].device)


def _in_host(size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room in host memory, page-locked where that is for a GPU and can be had."""
    if device.type == "cuda":
        try:
            return torch.empty(size, dtype=dtype, pin_memory=True)
        except RuntimeError as error:
            gigabytes = math.prod(size) * dtype.itemsize / 1e9
            warnings.warn(
                f"{gigabytes:.1f} GB for chains cannot be page-locked ({shown(error)}); they wait "
                "in plain memory, and copies take longer",
                stacklevel=3,
            )
    return torch.empty(size, dtype=dtype)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`; from host memory to a GPU the copy does not stop its queue."""
    if values.device == device:
        return values
    if device.type in PINNED and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def draw(shape: Sequence[int], generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Standard normals (B, ...), row i from `generators[i]`: a row never depends on its batch.

    The order of draws is that of a `diffusers` pipeline given the same list of generators.
    """
    rows = [
        torch.randn((1, *shape), generator=g, device=g.device, dtype=torch.float32)
        for g in generators
    ]
    return sent(torch.cat(rows), like.device)


@torch.no_grad()
def sample_chain(
    predict: Predictor,
    process: ReverseProcess,
    cond: Condition,
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    reference: Predictor | None = None,
    reference_weights: AbstractContextManager[object] | None = None,
    storage_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    into: DenoisingChain | None = None,
) -> DenoisingChain:
    """Draw one chain per generator.

    Every latent is rounded to `storage_dtype` *before* its log-prob is taken, so the stored chain
    scores exactly as drawn: rounding afterwards shifts bf16 log-probs by 5e-4 and more.

    Args:
        predict: the policy's network.
        process: of the scheduler.
        cond: one row for each chain.
        shape: of one x.
        generators: one for each chain.
        reference: adds `log_prob_ref` and `kl`, at the price of one more pass for each step with a
            density. It is asked once the chains are drawn. Until then the policy's means of these
            steps stay in memory, 4 bytes a number.
        reference_weights: entered once around these passes, as a switch of weights is slow.
        storage_dtype: of the stored x.
        device: where the networks compute.
        into: room for these chains, whose x has the storage dtype; None makes it on `device`.
    """
    device, count = torch.device(device), len(generators)
    if into is None:
        into = DenoisingChain.empty(
            count,
            shape,
            process.num_steps,
            dtype=storage_dtype,
            device=device,
            reference=reference is not None,
        )
    path = len(into.x) > 1
    like = torch.empty(0, device=device)
    x = draw(shape, generators, like).to(into.x.dtype)
    beside = path and into.x.device == device  # the stored x are where networks compute
    xs, means = [x], dict[int, Tensor]()
    for i in range(process.num_steps):
        if path:
            into.x[i].copy_(x, non_blocking=True)
        step = torch.full((count,), i, device=device)
        x_t = x.float()
        mean = process.mean(predict(x_t, process.timesteps_at(step), cond), x_t, step)
        x = mean
        if process.std[i] > 0:
            x = mean + process.std_at(step, mean) * draw(shape, generators, like)
        x = x.to(into.x.dtype)
        into.log_prob[:, i] = process.log_prob(x, mean, step)
        if reference is not None:
            if not beside:
                xs.append(x)
            if process.stochastic[i]:
                means[i] = mean
    into.x[-1].copy_(x, non_blocking=True)
    if reference is not None:
        assert into.log_prob_ref is not None and into.kl is not None
        drawn: Sequence[Tensor] = list(into.x) if beside else xs
        with reference_weights or nullcontext():
            for i, mean in means.items():
                step = torch.full((count,), i, device=device)
                x_t = drawn[i].float()
                other = process.mean(reference(x_t, process.timesteps_at(step), cond), x_t, step)
                into.log_prob_ref[:, i] = process.log_prob(drawn[i + 1], other, step)
                std = process.std_at(step, mean).clamp_min(1e-12)
                into.kl[:, i] = ((mean - other) / std).square().flatten(1).mean(1) / 2
    if into.x.device != device and device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # what is in host memory is read from it
    return into


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
    x_t, x_prev, steps = chain.step(rows, steps)
    mean = process.mean(predict(x_t, process.timesteps_at(steps), cond), x_t, steps)
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
