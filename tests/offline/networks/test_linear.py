"""`linear` is `torch.nn.functional.linear`, by whichever library is faster."""

import pytest
import torch
from torch.nn import functional as F

import offline.networks.linear
from offline.networks.linear import SMALL, Linear, linear


@pytest.fixture
def computed(monkeypatch):
    """How many products oneDNN made."""
    calls, product = [], offline.networks.linear._product

    def counted(*args):
        calls.append(args)
        return product(*args)

    monkeypatch.setattr(offline.networks.linear, "_product", counted)
    return calls


def tensors(*shape, outputs=128):
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(size, generator=generator).requires_grad_()

    return draw(*shape), draw(outputs, shape[-1]), draw(outputs)


@pytest.mark.parametrize("shape", [(512, 64), (8, 64, 64), (2, 4, 64, 64)])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients(shape, biased, computed):
    x, weight, bias = tensors(*shape)
    assert x.numel() * len(weight) >= SMALL
    given = (x, weight, bias) if biased else (x, weight)
    one, other = linear(*given), F.linear(*given)
    assert torch.allclose(one, other, atol=1e-4)
    upstream = torch.randn(one.shape, generator=torch.Generator().manual_seed(1))
    for got, want in zip(
        torch.autograd.grad(one, given, upstream),
        torch.autograd.grad(other, given, upstream),
        strict=True,
    ):
        assert torch.allclose(got, want, atol=1e-3)
    assert len(computed) == (3 if offline.networks.linear._AVAILABLE else 0)


def test_only_the_gradients_asked_for(computed):
    x, weight, bias = tensors(512, 64)
    (got,) = torch.autograd.grad(linear(x, weight.detach(), bias.detach()).sum(), [x])
    want = weight.detach().sum(0).expand_as(x)
    assert torch.allclose(got, want, atol=1e-4)
    assert len(computed) <= 2


def test_gradients_of_gradients(computed):
    """As a penalty on a network's gradient needs them."""
    found = []
    for function in (linear, F.linear):
        x, weight, bias = tensors(512, 64)
        (gradient,) = torch.autograd.grad(
            function(x, weight, bias).square().sum(), [x], create_graph=True
        )
        found.append(torch.autograd.grad(gradient.square().mean(), [x, weight, bias]))
    for got, want in zip(*found, strict=True):
        assert torch.allclose(got, want, rtol=1e-3, atol=1e-2 * float(want.abs().max()))
    assert len(computed) > 3 or not offline.networks.linear._AVAILABLE


@pytest.mark.parametrize("case", ["small", "float64", "bfloat16", "autocast"])
def test_what_does_not_suit_is_left_to_pytorch(case, computed):
    x, weight, bias = tensors(2 if case == "small" else 512, 64)
    if case in ("float64", "bfloat16"):
        x, weight, bias = (t.to(getattr(torch, case)) for t in (x, weight, bias))
    with torch.autocast("cpu", enabled=case == "autocast"):
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert not computed


def test_the_module_has_the_same_weights():
    ours, theirs = Linear(64, 128), torch.nn.Linear(64, 128)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(512, 64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    assert torch.equal(ours(x[:1]), theirs(x[:1]))
