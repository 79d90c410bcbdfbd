"""The interface of trajectory objectives: functions of log-probs and rewards, not of networks.

An objective maps log-probs (current, old, reference), rewards and groups to a scalar loss; how the
log-probs were computed, and how the gradient reaches the weights, is `two_pass.py`'s business.

Shapes: M chains, T steps. Log-probs are per-dimension means in nats, as in `chain.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffusion.errors import InputError
from diffusion.forward import Denoised
from diffusion.process import ReverseProcess


@dataclass(frozen=True)
class Rollouts:
    """One epoch's finished chains, as an objective sees them.

    log_prob_old, log_prob_ref: (M, T). reward: (M,). group: (M,) int64, the *id* of the prompt
    drawn (two draws of one string are two groups). step_weight: (T,) non-negative, sums to 1.
    dimensions: D, to convert per-dimension units to nats. advantage: (M,) where the objective's
    `prepare` makes one of the rewards.

    A row may be several samples in a sequence, as an episode is of decisions. Then step_weight is
    (M, T): of each sample they sum to 1, and past the end of a row they are 0. So what objectives
    aggregate over a row is a sum over samples of the mean over a sample's steps. `scored_steps`
    says how many steps of one sample count, by which such means become nats.
    """

    log_prob_old: Tensor
    log_prob_ref: Tensor
    reward: Tensor
    group: Tensor
    step_weight: Tensor
    dimensions: int
    advantage: Tensor | None = None
    scored_steps: int | None = None

    @property
    def scored(self) -> int:
        """Steps of one sample that count."""
        return self.scored_steps or int((self.step_weight > 0).sum())


class Objective(Protocol):
    """A loss over finished chains: log-probs under the current weights in, a scalar out."""

    def __call__(self, log_prob: Tensor, rollouts: Rollouts) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss, differentiable in `log_prob` (M, T), and metrics."""
        ...


class ForwardObjective(Objective, Protocol):
    """An objective on the forward process: the table is of its own `terms` at S draws of (t, eps).

    draws: S, for each prompt. terms_per_draw: C. anchor: whether `terms` needs outputs under an
    average of the weights. linear: whether the loss is linear in the table, so that its gradient
    needs no table under the current weights beforehand.
    """

    draws: int
    terms_per_draw: int
    anchor: bool
    linear: bool

    def terms(self, denoised: Denoised) -> Tensor:
        """(m,) or (m, C) numbers of m noised images, differentiable in the output."""
        ...


def step_weights(process: ReverseProcess, kind: str) -> Tensor:
    """(T,) float64 weights that sum to 1 over the steps with a density.

    uniform    1/T each, as published.
    skip_last  uniform without the step into nearly clean data, whose log-prob reacts to the
               network ten to a hundred times more strongly than any other's and drowns them. It
               is the last step with a density, or the one before where the last stays at the
               final noise level (Stable Diffusion's DDIM, steps_offset=1): the more sensitive.
    balanced   inversely proportional to the step's sensitivity |d mean/d output| / std, which
               gives every step the same say.
    Deterministic steps always have weight 0.
    """
    usable = process.stochastic.clone()
    if not usable.any():
        raise InputError(
            "no denoising step draws noise, so no step has a log-probability: use --scheduler ddpm "
            "or DDIM with --eta 1, and for a flow model --sampler cps with a --noise-level above "
            "0; prdp-forward, nft and awm need no noise"
        )
    weight = usable.double()
    if kind == "skip_last":
        if int(usable.sum()) > 1:
            last_two = usable.nonzero().flatten()[-2:]
            weight[last_two[process.sensitivity[last_two].argmax()]] = 0
    elif kind == "balanced":
        weight = weight / process.sensitivity.clamp_min(1e-12)
        weight[~usable] = 0
    elif kind != "uniform":
        raise InputError(f"step weights {kind!r}: expected uniform, skip_last or balanced")
    return weight / weight.sum()


# Rows and columns of a table (m,), their values (m, ...) where networks compute, and whether they
# are there for other processes' sake alone.
ScoredPart = tuple[Tensor, Tensor, Tensor, bool]


def filled(parts: Sequence[ScoredPart], rows: int, like: Tensor) -> Tensor:
    """The table (rows, T, ...) that parts make up, 0 elsewhere.

    Values are brought to where `like` (M, T, ...) is in one piece, in its dtype: a GPU is waited
    for once.
    """
    out = like.new_zeros(rows, like.shape[1], *parts[0][2].shape[1:])
    real = [part for part in parts if not part[3]]
    if real:
        at, columns, values = (torch.cat([part[k] for part in real]) for k in range(3))
        out[at, columns] = values.to(like)
    return out


def aggregated(table: Tensor, weight: Tensor) -> Tensor:
    """(M,) sums over the steps of a table (M, T), weighed by (T,), or by (M, T)."""
    return table @ weight if weight.ndim == 1 else (table * weight).sum(1)


def averaged(table: Tensor, weight: Tensor) -> Tensor:
    """Scalar: the mean of a table (M, S) whose columns count alike. With weights (M, S) it is the
    mean over rows of the weighed sums, in which nothing past the end of a row counts."""
    return table.mean() if weight.ndim == 1 else aggregated(table, weight).mean()


def group_members(group: Tensor) -> Tensor:
    """(M, M) bool, whether two chains share a group."""
    return group[:, None] == group[None, :]


def tie_fraction(reward: Tensor, group: Tensor) -> float:
    """Share of within-group pairs whose rewards are equal; 1.0 when there is no pair at all."""
    pair = torch.triu(group_members(group), diagonal=1)
    count = int(pair.sum())
    if count == 0:
        return 1.0
    return float((pair & (reward[:, None] == reward[None, :])).sum() / count)
