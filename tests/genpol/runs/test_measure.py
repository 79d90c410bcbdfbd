"""What measuring counts."""

from __future__ import annotations

import torch

from genpol.runs.measure import count_flop
from offline.networks.linear import SMALL, linear


def test_flop_of_products_and_their_gradients():
    x, weight = torch.randn(4, 8), torch.randn(3, 8, requires_grad=True)
    assert count_flop(lambda: linear(x, weight)) == 2 * 4 * 8 * 3
    assert count_flop(lambda: linear(x, weight).sum().backward()) == 2 * (2 * 4 * 8 * 3)


def test_flop_of_products_by_onednn():
    x, weight = torch.randn(64, 256), torch.randn(256, 256)
    assert x.numel() * len(weight) >= SMALL
    assert count_flop(lambda: linear(x, weight)) == 2 * 64 * 256 * 256
