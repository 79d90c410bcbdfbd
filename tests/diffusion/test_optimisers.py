"""AdamW in its three forms: the same steps, and a state that goes on bit for bit."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from diffusion import optimisers
from diffusion.config import FinetuneConfig
from diffusion.errors import InputError
from diffusion.optimisers import library_of, optimiser_name
from diffusion.trained_weights import TrainedWeights

CONFIG = FinetuneConfig(epochs=5, inner_steps=2, learning_rate=0.01, ema=0.5)


def made(optimizer: str | None, channels_last: bool = False) -> TrainedWeights:
    """Weights that 8 bits are for, one that is too small, and one of a convolution."""
    random = torch.Generator().manual_seed(0)
    shapes = {
        "large": (64, 96),
        "larger": (64, 128),
        "small": (3, 5),
        "convolution": (32, 16, 3, 3),
    }
    weights = {n: torch.nn.Parameter(torch.randn(s, generator=random)) for n, s in shapes.items()}
    if channels_last:
        weights["convolution"].data = weights["convolution"].data.contiguous(
            memory_format=torch.channels_last
        )
    config = replace(CONFIG, optimizer=optimizer)
    return TrainedWeights(weights, config, None, lambda what, number: None)


def stepped(trained: TrainedWeights, times: int, seed: int = 0) -> TrainedWeights:
    random = torch.Generator().manual_seed(seed)
    for _ in range(times):
        for p in trained.parameters.values():
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=random))
        trained.step()
    return trained


def stored(trained: TrainedWeights) -> dict[str, torch.Tensor]:
    """As it comes back from a file."""
    return load(save({name: value.contiguous() for name, value in trained.state().items()}))


def needs(library: str | None) -> None:
    if library is not None:
        pytest.importorskip(library)


KINDS = [("adamw", None), ("adamw-fused", None), ("adamw-8bit", "bitsandbytes")]
KINDS += [pytest.param("adamw-8bit", "torchao", marks=pytest.mark.slow)]  # compiles its step


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("name", "library"), KINDS)
def test_a_stored_state_goes_on_bit_for_bit(name, library, channels_last, monkeypatch):
    needs(library)
    monkeypatch.setattr(optimisers, "LIBRARIES", (library,))
    whole = stepped(made(name, channels_last), 3)
    other = made(name, channels_last)
    other.load_state(stored(whole), whole.updates)
    for one in (whole, other):
        stepped(one, 2, seed=1)
    for n, p in whole.parameters.items():
        assert torch.equal(p, other.parameters[n])
    for n, value in whole.state().items():
        assert torch.equal(value, other.state()[n]), n


@pytest.mark.parametrize("name", ["adamw", "adamw-fused"])
def test_moments_come_back_in_the_order_of_the_weights(name):
    """Kernels read both in the order of memory."""
    whole, other = stepped(made(name, True), 1), made(name, True)
    other.load_state(stored(whole), 1)
    weight = other.parameters["convolution"]
    assert not weight.is_contiguous()
    for moment in ("exp_avg", "exp_avg_sq"):
        assert other.optimiser.state[weight][moment].stride() == weight.stride()


@pytest.mark.parametrize(("name", "library"), KINDS[1:])
def test_steps_are_those_of_adamw(name, library, monkeypatch):
    needs(library)
    monkeypatch.setattr(optimisers, "LIBRARIES", (library,))
    plain, other = stepped(made("adamw"), 4), stepped(made(name), 4)
    start, tolerance = made("adamw"), 1e-5 if library is None else 0.1
    exact = 1e-5 if library is None else 1e-4  # moments of few numbers stay in fp32
    for n, p in plain.parameters.items():
        moved = p - start.parameters[n]
        apart = ((p - other.parameters[n]).norm() / moved.norm()).item()
        assert apart < (tolerance if n != "small" else exact)
    assert plain.rate == other.rate


def test_one_learning_rate_reaches_every_kind():
    config = replace(CONFIG, lr_warmup_steps=4, optimizer="adamw-fused")
    weights = {"w": torch.nn.Parameter(torch.ones(4, 4))}
    trained = stepped(TrainedWeights(weights, config, None, lambda what, number: None), 1)
    assert trained.optimiser.param_groups[0]["lr"] == pytest.approx(0.0025)
    group = {"lr": torch.tensor(1.0)}  # as torchao holds it
    trained.optimiser.param_groups[:] = [group]
    optimisers.set_rate(trained.optimiser, 0.5)
    assert float(group["lr"]) == 0.5


@pytest.mark.parametrize(("before", "after"), [("adamw", "adamw-fused"), ("adamw-fused", "adamw")])
def test_adamw_and_the_fused_one_read_each_others_state(before, after):
    first = stepped(made(before), 2)
    second = made(after)
    second.load_state(stored(first), first.updates)
    stepped(first, 1, seed=1), stepped(second, 1, seed=1)
    for n, p in first.parameters.items():
        torch.testing.assert_close(p, second.parameters[n], rtol=0, atol=1e-6)


def test_an_unfit_state_is_refused():
    whole = stepped(made("adamw"), 1)
    tensors = stored(whole)
    tensors["optimiser.exp_avg.large"] = torch.zeros(2)
    with pytest.raises(InputError, match=r'no "optimiser.exp_avg.large" of shape \(64, 96\)'):
        made("adamw").load_state(tensors, 1)
    eight = {n: v for n, v in stored(whole).items() if ".exp_avg" not in n}
    eight["optimiser.state1.large"] = torch.zeros(64, 96, dtype=torch.uint8)
    with pytest.raises(InputError, match='no "optimiser.state2.large"'):
        made("adamw").load_state(eight, 1)


def test_the_default_is_of_the_device():
    assert optimiser_name(None, "cpu") == "adamw"
    assert optimiser_name(None, "cuda:1") == "adamw-fused"
    assert optimiser_name("adamw", "cuda") == "adamw"
    assert made(None).kind == "adamw"


def test_a_missing_library_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install bitsandbytes") as found:
        library_of("adamw-8bit")
    assert "\n" not in str(found.value)
