"""Layers of bounded spectral norm: W <- W / max(1, sigma_max(W) / c) after each step.

That W is put back after each step, rather than W / max(1, sigma / c) differentiated on each use, is
projected gradient descent (Gouk et al., arXiv 1804.04368): a weight is what it seems to be, so that
averages, copies and files of critics within the bound are within it (the norm is convex), using a
head costs nothing, and weights cannot grow unseen, which would shrink the steps of Adam.

Shape legend: E heads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

# Of the search for sigma_max: directions kept from one step to the next, and powers of W^T W
# applied to them. A step of Adam is nearly of rank one and can lift a new direction above all
# others; power iteration then needs many steps to turn there. Largest sigma / c - 1 seen in the
# first 1,500 steps of two heads of 2 x 256 (lr 3e-4, c = 1): 2e-1 with one direction and one power,
# 1e-1 with two powers, 8e-3 with four directions and two powers; 4e-5 (800 steps) with the span of
# two directions and their four powers.
DIRECTIONS, POWERS = 2, 4


class SpectralBound(nn.Module):
    """A torch parametrization of matrices (E, out, in): what is assigned is projected.

        W <- W / max(1, sigma_max(W) / c)    for each of the E

    sigma_max comes from the power method, warm from one assignment to the next and on all E at
    once, in its best form: not the last power but the best vector in the span of all of them
    (block Lanczos by Rayleigh-Ritz). It approaches from below, and is exact where a side of the
    matrices has no more than DIRECTIONS * (POWERS + 1) entries.

    Args:
        weight: (E, out, in), to start from.
        bound: c, above 0.
    """

    basis: Tensor

    def __init__(self, weight: Tensor, bound: float) -> None:
        super().__init__()
        self.bound = bound
        count, *sides = weight.shape
        start = torch.randn(
            (count, min(DIRECTIONS, *sides), min(sides)), generator=Generator().manual_seed(0)
        )
        self.register_buffer("basis", start.to(weight))
        """(E, k, the shorter side): orthonormal; the last row is sigma_max's direction."""
        for _ in range(10):
            self.measure(weight)

    def forward(self, weight: Tensor) -> Tensor:
        """(E, out, in) as it is: it was projected when it was assigned."""
        return weight

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """(E, out, in) -> the same within the bound."""
        if weight.is_meta:  # made for its shapes alone
            return weight
        excess = (self.measure(weight) / self.bound).clamp(min=1)
        if weight.is_cpu and not bool((excess > 1).any()):  # elsewhere, to ask is to wait
            return weight
        return weight / excess[:, None, None]

    @torch.no_grad()
    def measure(self, weight: Tensor) -> Tensor:
        """sigma_max (E,) of (E, out, in)."""
        weight = _upright(weight)
        if weight.shape[2] == 1:
            return weight.square().sum((1, 2)).sqrt_()
        powers, scale = [self.basis], 1 / self.bound**2  # so that no power overflows
        for _ in range(POWERS):  # as rows: (W^T W v)^T = v^T W^T W
            images = torch.bmm(powers[-1], weight.mT)
            powers.append(torch.baddbmm(self.basis, images, weight, beta=0, alpha=scale))
        span = torch.linalg.qr(torch.cat(powers, dim=1).mT).Q.mT
        images = torch.bmm(span, weight.mT)
        squares, turns = torch.linalg.eigh(torch.bmm(images, images.mT))  # ascending
        self.basis.copy_(torch.bmm(turns[..., -self.basis.shape[1] :].mT, span))
        return squares[:, -1].clamp(min=0).sqrt_()

    @torch.no_grad()
    def sigma(self, weight: Tensor) -> Tensor:
        """sigma_max (E,) of the weight measured last, or of what its projection made of it."""
        weight = _upright(weight)
        if weight.shape[2] == 1:
            return self.measure(weight)
        return torch.bmm(self.basis[:, -1:], weight.mT)[:, 0].norm(dim=-1)


def _upright(weight: Tensor) -> Tensor:
    """(E, long side, short side), of the same singular values."""
    return weight.mT if weight.shape[1] < weight.shape[2] else weight


def constrain(module: nn.Module, name: str, bound: float) -> None:
    """Keep the parameter `name` (E, out, in) of `module` within the bound c."""
    weight = getattr(module, name)
    parametrize.register_parametrization(module, name, SpectralBound(weight, bound))


def constrained(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every parameter with a bound in `module`: whose it is, and its name."""
    for part in module.modules():
        if parametrize.is_parametrized(part):
            yield from ((part, name) for name in part.parametrizations)  # type: ignore[union-attr]


def tighten(module: nn.Module) -> None:
    """Project every constrained parameter in `module`; to be called after each step."""
    for part, name in constrained(module):
        setattr(part, name, getattr(part, name).detach())
