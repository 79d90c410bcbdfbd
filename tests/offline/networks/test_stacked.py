"""`run` is what automatic differentiation makes of the same layers."""

import pytest
import torch

from offline.networks.stacked import Layer, _plain, run


def made(activation, normed=True, bare=False, low=False, members=3):
    draw = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return torch.randn(shape, generator=draw).requires_grad_()

    sizes = [(6, 8), (8, 8), (8, 2)] if bare else [(8, 8), (8, 2)]
    layers = []
    for i, (a, b) in enumerate(sizes):
        norm = (tensor(members, a), tensor(members, a)) if normed else ()
        first, last = i == 0, i == len(sizes) - 1
        layers.append(
            Layer(
                tensor(members, b, a),
                tensor(members, b),
                *norm,
                bare=bare and first,
                low=low and not last,
            )
        )
    xs = [tensor(16, sizes[0][0]) for _ in range(members)]
    return xs, layers


def gradients(out, xs, layers):
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    tensors = [*xs, *(t for layer in layers for t in layer.tensors)]
    found = torch.autograd.grad(out, tensors, upstream)
    return [out, *found]


def by_hand(xs, layers, activation, which):
    kinds = tuple(layer.kind for layer in layers)
    return _plain(activation, kinds, which, xs, [t for layer in layers for t in layer.tensors])


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize(("normed", "bare"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("low", [True, False])
def test_values_and_gradients(activation, normed, bare, low):
    xs, layers = made(activation, normed, bare, low)
    got = gradients(run(xs, layers, activation), xs, layers)
    want = gradients(by_hand(xs, layers, activation, range(3)), xs, layers)
    for one, other in zip(got, want, strict=True):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=(3e-2 if low else 1e-5) * scale)
    with torch.no_grad():
        assert torch.equal(run(xs, layers, activation), got[0])


def test_some_networks_alone():
    """Others get a gradient of 0, and one asked for twice gets both."""
    xs, layers = made("relu")
    which = [2, 0, 2]
    got = gradients(run(xs, layers, "relu", which), xs, layers)
    want = gradients(by_hand(xs, layers, "relu", which), xs, layers)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not got[-1][1].any() and got[-1][2].any()


def test_gradients_of_gradients():
    found = []
    for way in (run, lambda xs, layers, f: by_hand(xs, layers, f, range(3))):
        xs, layers = made("silu")
        weight = layers[0].tensors[0]
        (gradient,) = torch.autograd.grad(
            way(xs, layers, "silu").square().sum(), xs[:1], create_graph=True
        )
        found.append(torch.autograd.grad(gradient.square().mean(), [xs[0], weight]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_what_needs_no_gradient_gets_none():
    xs, layers = made("relu")
    for layer in layers:
        for tensor in layer.tensors:
            tensor.requires_grad_(False)
    run(xs, layers, "relu").sum().backward()
    assert all(x.grad.any() for x in xs)
    assert all(t.grad is None for layer in layers for t in layer.tensors)
