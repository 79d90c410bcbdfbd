"""Critics whose value changes little where the state does: bounded layers, or a penalty.

Zheng et al. (arXiv 2302.01244): where V has the Lipschitz constant L, a model that is wrong by
d(s') in the next state is wrong by at most gamma L E |d(s')| in the Bellman target. What matters of
a model is thus the error *of values* it causes; ensembles of models, they argue, help because their
spread trains V on perturbed states and so lowers L. Lowering L directly lets one model do.

spectral     every layer's matrices satisfy  sigma_max(W) <= c,  by  W <- W / max(1, sigma_max(W) / c)
             after each step; ReLU is 1-Lipschitz, so n layers give |Q(x) - Q(x')| <= c^n |x - x'|
             over x = (standardised state, action), whatever the data
adversarial  lambda * E max_{|d|_inf <= epsilon} (Q(s + d, a) - Q(s, a))^2,  around the data only

LayerNorm has no such constant (near a constant input it divides by almost nothing), so bounded
heads have none. Their first layer is split into a state's and an action's part only where it is
run; it is bounded as the one matrix that it is.

That W is put back after each step, rather than W / max(1, sigma / c) differentiated on each use, is
projected gradient descent (Gouk et al., arXiv 1804.04368): a weight is what it seems to be, so that
an average of two critics, a copy or a file is within the bound if they are (the norm is convex),
using a head costs nothing, and weights do not grow out of their bound unseen, which would shrink
the steps of Adam.

Metrics, of every update:

    lipschitz/sigma_layer1 ..     largest over heads of sigma_max(W), of each layer (spectral)
    lipschitz/empirical_median    median and maximum over heads and some rows of the batch of
    lipschitz/empirical_max       |grad Q| with respect to the standardised state
    lipschitz/penalty             the adversarial term before lambda, summed over heads

Shape legend: E heads, B batch, N hidden units, F features, S standardised state, the first of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from offline.errors import InputError

if TYPE_CHECKING:  # heads are made of what is here
    from offline.batch import Batch
    from offline.td import Penalty
    from offline.value import ValueFunction

Attack = Literal["fgsm", "pgd", "uniform"]

# Right singular directions followed per matrix. Several, because once a layer is at its bound many
# singular values are near c, and a step may lift another of them above the one that was followed.
DIRECTIONS = 4
PGD_STEPS = 5
OBSERVED_ROWS = 16  # of each batch, for the empirical constant: a few per cent of an update's time


# -- spectral


class SpectralBound(nn.Module):
    """A torch parametrization of matrices (E, out, in): what is assigned is projected.

        W <- W / max(1, sigma_max(W) / c)    for each of the E

    sigma_max is found by subspace iteration, warm from one call to the next, on all E at once;
    it approaches from below.

    Args:
        weight: (E, out, in), to start from.
        bound: c, above 0.
    """

    basis: Tensor
    sigma: Tensor

    def __init__(self, weight: Tensor, bound: float) -> None:
        super().__init__()
        self.bound = bound
        count, outputs, inputs = weight.shape
        size = (count, inputs, min(DIRECTIONS, outputs, inputs))
        start = torch.randn(size, generator=Generator().manual_seed(0), dtype=torch.float64)
        self.register_buffer("basis", torch.linalg.qr(start.to(weight)).Q.mT.contiguous())
        # Not saved: an average's would be another critic's.
        self.register_buffer("sigma", weight.new_zeros(count), persistent=False)
        self.measure(weight.detach(), iterations=50)

    def forward(self, weight: Tensor) -> Tensor:
        """(E, out, in) as it is: it was projected when it was assigned."""
        return weight

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """(E, out, in) -> the same within the bound."""
        excess = (self.measure(weight) / self.bound).clamp(min=1)
        self.sigma.clamp_(max=self.bound)
        return weight / excess[:, None, None] if bool((excess > 1).any()) else weight

    @torch.no_grad()
    def measure(self, weight: Tensor, iterations: int = 2) -> Tensor:
        """sigma_max (E,) of (E, out, in); kept as `sigma`."""
        for _ in range(iterations):
            images = torch.bmm(self.basis, weight.mT)  # (E, k, out), rows W v
            squares, turns = torch.linalg.eigh(torch.bmm(images, images.mT))
            back = torch.bmm(images, weight)  # rows W^T W v
            # |W^T u| of the unit u = W v / |W v| that is longest: at least as long as W v itself
            top = torch.bmm(turns[..., -1:].mT, back)[:, 0].norm(dim=-1)
            self.sigma.copy_(top / squares[:, -1].clamp(min=1e-24).sqrt())
            self.basis.copy_(torch.linalg.qr(back.mT).Q.mT)
        return self.sigma


def constrain(module: nn.Module, name: str, bound: float) -> None:
    """Keep the parameter `name` (E, out, in) of `module` within the bound c."""
    weight = getattr(module, name)
    parametrize.register_parametrization(module, name, SpectralBound(weight, bound))


def tighten(module: nn.Module) -> None:
    """Project every constrained parameter in `module`; to be called after each step."""
    for part in module.modules():
        if parametrize.is_parametrized(part):
            for name in part.parametrizations:  # type: ignore[union-attr]
                setattr(part, name, getattr(part, name).detach())


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
        weight = value.heads.first_layer()[0][..., :dim]
    with torch.enable_grad():
        projected.requires_grad_()
        q = value.score(projected, act[:, None])
        (gradient,) = torch.autograd.grad(q.sum(), [projected])
    gradient = gradient.unflatten(-1, (value.ensemble, -1)).transpose(0, 1)  # each head's own
    return torch.bmm(gradient, weight).norm(dim=-1)


def observe(value: ValueFunction, batch: Batch) -> dict[str, Tensor]:
    """lipschitz/sigma_layer* and lipschitz/empirical_*, see the top."""
    metrics: dict[str, Tensor] = {}
    bounds = [module for module in value.heads.modules() if isinstance(module, SpectralBound)]
    for i, bound in enumerate(bounds, start=1):
        metrics[f"lipschitz/sigma_layer{i}"] = bound.sigma.max().clone()
    if value.encoder.normalizer.dim:
        every = slice(None, None, max(1, len(batch) // OBSERVED_ROWS))  # sources lie side by side
        obs = {key: tensor[every] for key, tensor in batch.obs.items()}
        norms = gradient_norms(value, obs, batch.act[every])
        metrics["lipschitz/empirical_median"] = norms.median()
        metrics["lipschitz/empirical_max"] = norms.max()
    return metrics


def watch(value: ValueFunction, batch: Batch, generator: Generator) -> tuple[Tensor, dict]:
    """A `Penalty` of 0 that observes."""
    return batch.reward.new_zeros(()), observe(value, batch)


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
        act = batch.act[:, None]
        delta = perturbation(value, features, act, radius, attack, generator)
        gap = squared_gap(value, features, act, delta).mean(1).sum()
        return weight * gap, {"lipschitz/penalty": gap.detach()}

    return penalty


def squared_gap(value: ValueFunction, features: Tensor, act: Tensor, delta: Tensor) -> Tensor:
    """(Q_e(s + d_e, a) - Q_e(s, a))^2: (E, B).

    Args:
        value: the critic.
        features: (B, F) from its encoder, standardised state first.
        act: (B, 1, H, A).
        delta: (E, B, S).
    """
    here = value.heads.project(features)
    both = torch.cat([here, here + _moved(value, delta)])
    q, moved = value.score(both, act.repeat(2, 1, 1, 1))[..., 0].chunk(2, dim=1)
    return (moved - q).square()


def perturbation(
    value: ValueFunction,
    features: Tensor,
    act: Tensor,
    radius: float,
    attack: Attack,
    generator: Generator,
) -> Tensor:
    """d (E, B, S) within the radius, without gradient; arguments as of `squared_gap`.

    "uniform": at random. "fgsm": from there, radius * sign of the gradient (at d = 0 there is
    none, which is why not from there). "pgd": from FGSM's result, `PGD_STEPS` steps of half the
    radius along the sign, and of all those points the worst for each head and row.
    """
    size = (value.ensemble, len(features), value.encoder.normalizer.dim)
    start = torch.rand(size, generator=generator, device=generator.device).to(features)
    start = (2 * start - 1) * radius
    if attack == "uniform":
        return start
    with torch.no_grad():
        here = value.heads.project(features)
        q = value.score(here, act)[..., 0]

    def climb(delta: Tensor) -> tuple[Tensor, Tensor]:
        """The gap (E, B) at delta, and the sign of its gradient."""
        with torch.enable_grad():
            delta = delta.detach().requires_grad_()
            gap = (value.score(here + _moved(value, delta), act)[..., 0] - q).square()
            (gradient,) = torch.autograd.grad(gap.sum(), [delta])
        return gap.detach(), gradient.sign()

    best = radius * climb(start)[1]
    if attack == "fgsm":
        return best
    delta = best
    most, sign = climb(delta)
    for _ in range(PGD_STEPS):
        delta = (delta + radius / 2 * sign).clamp(-radius, radius)
        gap, sign = climb(delta)
        best = torch.where((gap > most)[..., None], delta, best)
        most = torch.maximum(gap, most)
    return best


def _moved(value: ValueFunction, delta: Tensor) -> Tensor:
    """What (E, B, S) adds to the state's part of each head's first layer: (B, E * N)."""
    weight = value.heads.first_layer()[0][..., : delta.shape[-1]]
    return torch.bmm(delta, weight.mT).transpose(0, 1).flatten(1)
