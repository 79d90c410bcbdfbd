"""The learning rate is a function of the number of updates; averages and moments come back."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from diffusion.config import FinetuneConfig, check
from diffusion.errors import InputError
from diffusion.trained_weights import TrainedWeights, learning_rate

TEN = FinetuneConfig(epochs=5, inner_steps=2, learning_rate=0.1)


def rates(config: FinetuneConfig, updates: int = 10) -> list[float]:
    return [learning_rate(config, u) for u in range(updates)]


def test_a_constant_rate_is_the_configured_one_to_the_last_bit():
    assert rates(TEN) == [0.1] * 10


def test_linear_by_hand():
    expected = [0.1 * (1 - u / 10) for u in range(10)]
    assert rates(replace(TEN, lr_schedule="linear")) == pytest.approx(expected)


def test_cosine_after_warm_up_by_hand():
    config = replace(TEN, lr_schedule="cosine", lr_warmup_steps=4)
    rise = [0.025, 0.05, 0.075, 0.1]
    fall = [0.05 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert rates(config) == pytest.approx(rise + fall)
    assert min(rates(config)) > 0  # no update of the run is wasted
    assert learning_rate(config, 99) == pytest.approx(0)


def test_more_epochs_continue_as_a_run_of_that_length():
    config = replace(TEN, lr_schedule="linear")
    longer = replace(config, epochs=10)
    assert learning_rate(longer, 10) == pytest.approx(0.05)
    assert rates(longer, 20)[10:] == [learning_rate(longer, u) for u in range(10, 20)]


def test_a_warm_up_longer_than_the_run_is_refused():
    check(replace(TEN, lr_warmup_steps=10))
    with pytest.raises(InputError, match="--lr-warmup-steps 11 is more than the 10 optimiser"):
        check(replace(TEN, lr_warmup_steps=11))


def stepped(trained: TrainedWeights, times: int, seed: int) -> None:
    for k in range(times):
        random = torch.Generator().manual_seed(100 * seed + k)
        for p in trained.parameters.values():
            p.grad = torch.randn(p.shape, generator=random)
        trained.step()


def made(config: FinetuneConfig) -> TrainedWeights:
    weights = {"w": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))}
    return TrainedWeights(weights, config, None, lambda what, number: None)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_an_interrupted_schedule_goes_on_bit_for_bit(schedule):
    config = replace(TEN, lr_schedule=schedule, lr_warmup_steps=3)
    whole = made(config)
    stepped(whole, 5, 1)
    half = {name: value.clone() for name, value in whole.state().items()}
    other = made(config)
    other.load_state(half, whole.updates)
    stepped(whole, 4, 2)
    stepped(other, 4, 2)
    assert torch.equal(whole.parameters["w"], other.parameters["w"])
    assert whole.rate == other.rate == learning_rate(config, 8)


def test_the_rate_is_what_the_optimiser_steps_with():
    """With Adam's first step of about the rate's size, warm-up halves what moves."""
    full, half = made(TEN), made(replace(TEN, lr_warmup_steps=2))
    before = full.parameters["w"].detach().clone()
    stepped(full, 1, 1)
    stepped(half, 1, 1)
    moved = [(t.parameters["w"].detach() - before).abs().mean() for t in (full, half)]
    assert float(moved[1] / moved[0]) == pytest.approx(0.5, rel=0.01)


def test_a_step_without_any_gradient_changes_nothing():
    trained = made(TEN)
    before = trained.parameters["w"].detach().clone()
    assert trained.step() == 0 and trained.updates == 1
    assert torch.equal(trained.parameters["w"], before)
