"""Lipschitz-bounded critics: layers of bounded spectral norm, or an adversarial penalty.

Zheng et al. (arXiv 2302.01244): where V has the Lipschitz constant L, a model that is wrong by
d(s') in the next state is wrong by at most gamma L E |d(s')| in the Bellman target. What matters of
a model is thus the error *of values* it causes; ensembles of models, they argue, help because their
spread trains V on perturbed states and so lowers L. Lowering L directly lets one model do.

spectral     W <- W / max(1, sigma_max(W) / c)  for every layer after each step, so that
             sigma_max(W) <= c; ReLU is 1-Lipschitz, and n layers thus give
             |Q(x) - Q(x')| <= c^n |x - x'| over x = (features of the state, action), everywhere
adversarial  lambda * E max_{|d|_inf <= epsilon} (Q(s + d, a) - Q(s, a))^2,  around the data only

LayerNorm has no such constant (near a constant input it divides by almost nothing), so bounded
heads have none. Their first layer is split into a state's and an action's part only where it is
run; it is bounded as the one matrix that it is.

That W is put back after each step, rather than W / max(1, sigma / c) differentiated on each use, is
projected gradient descent (Gouk et al., arXiv 1804.04368): a weight is what it seems to be, so that
averages, copies and files of critics within the bound are within it (the norm is convex), using a
head costs nothing, and weights cannot grow unseen, which would shrink the steps of Adam.

Metrics:

    lipschitz/sigma_layer1 ..     largest over heads of sigma_max(W), of each layer (spectral)
    lipschitz/empirical_median    median and maximum over heads and some rows of the batch of
    lipschitz/empirical_max       |grad Q| with respect to the standardised state
    lipschitz/penalty             the adversarial term before lambda, summed over heads

Shape legend: E heads, B batch, N hidden units, F features, S standardised state, the first of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Generator, Tensor

from offline.draws import uniform
from offline.errors import InputError
from offline.networks.spectral import constrained

if TYPE_CHECKING:  # heads are made of what is here
    from offline.critics.td import Penalty
    from offline.critics.value import ValueFunction
    from offline.data.batch import Batch

Attack = Literal["fgsm", "pgd", "uniform"]

PGD_STEPS = 5
# What is observed, in so many updates and so many rows: a few per cent of an update's time.
OBSERVED_EVERY, OBSERVED_ROWS = 8, 16


def layer_sigmas(value: ValueFunction) -> Tensor:
    """sigma_max of every layer and head, (layers, E), exact; of heads without a bound too."""
    with torch.no_grad():
        return torch.stack([torch.linalg.matrix_norm(w, ord=2) for w in value.heads.matrices()])


# -- measured


def gradient_norms(value: ValueFunction, obs: dict[str, Tensor], act: Tensor) -> Tensor:
    """|grad_s Q_e(s, a)|_2 with respect to the standardised state: (E, B).

    Args:
        value: without standardised state, all are 0.
        obs: B observations.
        act: (B, H, A).
    """
    dim = value.encoder.normalizer.dim
    with torch.no_grad():
        projected = value.heads.project(value.encoder(obs))
    with torch.enable_grad():
        q = value.score(projected.requires_grad_(), act[:, None])
        (gradient,) = torch.autograd.grad(q.sum(), [projected])
    gradient = gradient.unflatten(-1, (value.ensemble, -1)).transpose(0, 1)  # each head's own
    return torch.bmm(gradient, value.heads.first_layer()[0].detach()[..., :dim]).norm(dim=-1)


def observe(value: ValueFunction, batch: Batch) -> dict[str, Tensor]:
    """lipschitz/sigma_layer* and lipschitz/empirical_*, see the top."""
    metrics: dict[str, Tensor] = {}
    for i, (part, name) in enumerate(constrained(value.heads), start=1):
        held: Any = part.parametrizations[name]  # type: ignore[index]
        metrics[f"lipschitz/sigma_layer{i}"] = held[0].sigma(held.original).max()
    if value.encoder.normalizer.dim:
        every = slice(None, None, max(1, len(batch) // OBSERVED_ROWS))  # sources lie side by side
        obs = {key: tensor[every] for key, tensor in batch.obs.items()}
        norms = gradient_norms(value, obs, batch.act[every])
        metrics["lipschitz/empirical_median"] = norms.median()
        metrics["lipschitz/empirical_max"] = norms.max()
    return metrics


def watch(value: ValueFunction, batch: Batch, generator: Generator) -> tuple[Tensor, dict]:
    """A `Penalty` of 0 that observes one update in `OBSERVED_EVERY`, drawn by the generator."""
    due = torch.randint(OBSERVED_EVERY, (), generator=generator, device=generator.device) == 0
    return batch.reward.new_zeros(()), observe(value, batch) if bool(due) else {}


# -- adversarial


def adversarial(weight: float, radius: float, attack: Attack = "fgsm") -> Penalty:
    """lambda * sum_e E max_{|d|_inf <= epsilon} (Q_e(s + d, a) - Q_e(s, a))^2 as a `Penalty`.

    Each head has its own d. Images, and an instruction, stay as they are, and the encoder learns
    nothing from it.

    Args:
        weight: lambda.
        radius: epsilon, in standard deviations of each state dimension.
        attack: see `perturbation`.

    Raises:
        InputError: when called, if the critic sees images alone.
    """

    def penalty(value: ValueFunction, batch: Batch, generator: Generator) -> tuple[Tensor, dict]:
        if not value.encoder.normalizer.dim:
            raise InputError(
                "--lipschitz adversarial changes one-dimensional observations, and this critic "
                "sees none: use --lipschitz spectral, or give it some by --obs-keys"
            )
        with torch.no_grad():
            features = value.encoder(batch.obs)
        gap = squared_gap(value, features, batch.act, radius, attack, generator).mean(1).sum()
        return weight * gap, {"lipschitz/penalty": gap.detach()}

    return penalty


def squared_gap(
    value: ValueFunction,
    features: Tensor,
    act: Tensor,
    radius: float,
    attack: Attack,
    generator: Generator,
) -> Tensor:
    """(Q_e(s + d_e, a) - Q_e(s, a))^2 of the d that `attack` finds: (E, B), with gradient.

    Args:
        value: the critic.
        features: (B, F) from its encoder, standardised state first.
        act: (B, H, A).
        radius, attack, generator: see `perturbation`.
    """
    act = act[:, None]
    here = value.heads.project(features)
    q = value.score(here, act)[..., 0]

    def gap(delta: Tensor, here: Tensor, q: Tensor) -> Tensor:
        weight = value.heads.first_layer()[0][..., : delta.shape[-1]]
        moved = here + torch.bmm(delta, weight.mT).transpose(0, 1).flatten(1)
        return (value.score(moved, act)[..., 0] - q).square()

    size = (value.ensemble, len(features), value.encoder.normalizer.dim)
    start = uniform(size, generator, features)
    fixed = here.detach(), q.detach()
    delta = perturbation(lambda d: gap(d, *fixed), (2 * start - 1) * radius, radius, attack)
    return gap(delta, here, q)


def perturbation(
    gap: Callable[[Tensor], Tensor], start: Tensor, radius: float, attack: Attack
) -> Tensor:
    """d (E, B, S) within the radius that makes the gap large, without gradient.

    "uniform": the start. "fgsm": from there, radius * sign of the gradient (at d = 0 there is none,
    which is why not from there). "pgd": from FGSM's result, `PGD_STEPS` steps of half the radius
    along the sign, and of all those points the worst for each head and row.

    Args:
        gap: d -> (E, B).
        start: (E, B, S) drawn uniformly within the radius.
        radius: epsilon.
        attack: which of the three.
    """

    def climb(delta: Tensor) -> tuple[Tensor, Tensor]:
        """The gap (E, B) at delta, and the sign of its gradient."""
        with torch.enable_grad():
            delta = delta.detach().requires_grad_()
            found = gap(delta)
            (gradient,) = torch.autograd.grad(found.sum(), [delta])
        return found.detach(), gradient.sign()

    if attack == "uniform":
        return start
    best = delta = radius * climb(start)[1]
    if attack == "fgsm":
        return best
    most, sign = climb(delta)
    for _ in range(PGD_STEPS):
        delta = (delta + radius / 2 * sign).clamp(-radius, radius)
        found, sign = climb(delta)
        best = torch.where((found > most)[..., None], delta, best)
        most = torch.maximum(found, most)
    return best
