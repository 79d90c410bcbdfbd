"""How far a policy is from its reference, on one axis for every objective and sampler.

A diffusion model whose network is exact has, for its own samples noised forwards (arXiv 2101.09258,
theorem 2; the weights are those of the evidence lower bound, `ForwardProcess.half_weight`),

    KL(p_theta(x_0) || p_ref(x_0)) = D  integral over t in [0, 1] of
                                     E [ |net_theta(x_t, t, c) - net_ref(x_t, t, c)|^2 / (2 w(t)) ]

with x_0 an image of the policy, x_t its forward noising, |.|^2 a mean over the D dimensions, and
guidance included in both outputs. It needs finished images and two passes, and no step densities:
it is defined for chains, for the forward process and for the ODE alike. For chains with eta = 1 it
is what the KL of whole trajectories tends to with many steps. With few steps that one is several
times larger, because the noise of a long step is small beside what the step moves.

The integral is taken evenly in log(a^2 / s^2), by the multiples of the golden ratio, so that no
time goes with certain rows. The times at the ends of the schedule that `forward.EDGE` leaves out
are left out here, too, and so are times without signal. Unit: nats per image.

In a run of several processes each has the samples that it holds (`ranks.py`), and all get all
numbers.

Shapes: M samples, of which H are held; S draws of (t, eps) for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from diffusion.chain import Condition, Predictor, draw, sent
from diffusion.fitting import Fitting, fitting
from diffusion.forward import EDGE, ForwardProcess, forward_process
from diffusion.ranks import Share, whole
from diffusion.scores import take
from diffusion.streams import KL_TRAINING, generators

GOLDEN = (5**0.5 - 1) / 2
EPOCH_IMAGES = 64  # of an epoch, that its distance from the reference is taken of
LEAST_SIGNAL = 1e-3  # a^2 of a time that counts in full


class Policy(Protocol):
    """What `policy_kl` needs of a policy; `ImagePolicy` has it."""

    pipe: object

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor: ...
    def predict_reference(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor: ...
    def as_reference(self) -> AbstractContextManager[Any]: ...


def spread_times(process: ForwardProcess, count: int) -> tuple[Tensor, Tensor]:
    """(count,) indices of times, and numbers (count,) float64 to weigh an error of each with.

    The mean of error times number estimates the integral over t of error / (2 w).
    """
    n = len(process.timestep)
    first, last = int(EDGE * n), int((1 - EDGE) * n)
    inside = torch.arange(min(first, n - 1), max(last, first + 1))
    # Of a schedule that ends in pure noise, the last step spans half of all log(a^2 / s^2).
    density = process.slope[inside] * (process.a[inside].square() / LEAST_SIGNAL).clamp_max(1)
    density = density / density.sum()
    places = (0.5 + torch.arange(count, dtype=torch.float64) * GOLDEN) % 1
    at = torch.searchsorted(density.cumsum(0), places).clamp_max(len(inside) - 1)
    return inside[at], process.half_weight("elbo", inside[at]).double() / (n * density[at])


@torch.no_grad()
def forward_kl(
    predict: Predictor,
    reference: Predictor,
    process: ForwardProcess,
    samples: Tensor,
    cond: Condition,
    generators: Sequence[torch.Generator],
    *,
    draws: int = 1,
    batch: int | Fitting = 64,
    group: Tensor | None = None,
    share: Share | None = None,
    reference_weights: AbstractContextManager[Any] | None = None,
) -> Tensor:
    """KL from the reference in nats per image: (M,) float64, whose mean is the estimate.

    One number is of few times and says little by itself; the spread of all M says how sure the mean
    is.

    Args:
        predict, reference: the two networks, guidance included.
        process: the scheduler's forward process.
        samples: (H, ...) clean samples that the policy drew.
        cond: one row for each of `samples`, or for each group; it is where networks compute.
        generators: M, one for each sample's noise.
        draws: S, times and noises for each sample.
        batch: samples of one pass.
        group: (H,) the row of `cond` of each of `samples`; None where there is one for each.
        share: which of M samples are held by whom; without it, `samples` are all of them.
        reference_weights: entered once around the passes of `reference`.
    """
    share = share or whole(len(samples))
    count = len(share)
    rows, columns = torch.arange(count).repeat_interleave(draws), torch.arange(draws).repeat(count)
    at, weight = spread_times(process, count * draws)
    device = next((value.device for value in cond.values()), samples.device)
    like = torch.empty(0, device=device)
    noise = torch.zeros(len(samples), draws, *samples.shape[1:], device=device)
    for row in share.mine:
        noise[share.place[row]] = draw(samples.shape[1:], [generators[row]] * draws, like)
    held = share.items(rows)

    def said(network: Predictor) -> Tensor:
        outputs = torch.zeros_like(noise)

        def part(first: int, last: int) -> None:
            some = held.part(first, last)
            row, column = some.held, sent(columns[some.items], device)
            clean, place = sent(samples[sent(row, samples.device)], device), sent(row, device)
            x_t = process.noised(clean.float(), noise[place, column], at[some.items])
            t = process.timesteps_at(at[some.items], device)
            output = network(x_t, t, take(cond, row if group is None else group[row])).float()
            if not some.padding:
                outputs[place, column] = output

        fitting(batch).over(held.most, part)
        return outputs

    policy = said(predict)
    with reference_weights or nullcontext():
        apart = policy - said(reference)
    found = share.gather(apart.square().flatten(2).mean(2).double().cpu())
    return (found * weight.view(count, draws)).mean(1) * samples[0].numel()


def policy_kl(
    policy: Policy,
    samples: Tensor,
    cond: Condition,
    generators: Sequence[torch.Generator],
    *,
    draws: int = 1,
    batch: int | Fitting = 64,
    group: Tensor | None = None,
    share: Share | None = None,
) -> Tensor:
    """`forward_kl` of a policy from its reference, at latents (H, ...) that it drew."""
    return forward_kl(
        policy.predict,
        policy.predict_reference,
        forward_process(policy.pipe.scheduler),  # type: ignore[attr-defined]
        samples,
        cond,
        generators,
        draws=draws,
        batch=batch,
        group=group,
        share=share,
        reference_weights=policy.as_reference(),
    )


def epoch_kl(
    policy: Policy,
    samples: Tensor,
    cond: Condition,
    group: Tensor,
    seed: int,
    epoch: int,
    batch: int | Fitting,
    share: Share | None = None,
) -> float:
    """`policy_kl` by some of an epoch's images: latents (H, ...) of the rows `group` (H,) of
    `cond`."""
    share = share or whole(len(samples))
    rows = torch.linspace(0, len(share) - 1, min(EPOCH_IMAGES, len(share))).long()
    streams = generators(seed, KL_TRAINING, epoch, range(len(rows)))
    some, stay = share.kept(rows)
    picked = samples[stay.to(samples.device)]
    each = policy_kl(policy, picked, cond, streams, batch=batch, group=group[stay], share=some)
    return float(each.mean())
