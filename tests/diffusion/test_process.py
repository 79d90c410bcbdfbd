"""The table of Gaussians against the schedulers it was read from."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler

from diffusion.errors import InputError
from diffusion.objective import step_weights
from diffusion.process import reverse_process

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")
NUM_STEPS = (1, 4, 7, 50)
SHAPE = (2, 3)  # of one x


def assert_equals_step(scheduler, num_steps: int, eta: float | None) -> None:
    """mean + std * noise is `scheduler.step` at every step, all steps in one shuffled batch."""
    process = reverse_process(scheduler, num_steps, 1.0 if eta is None else eta)
    count = process.num_steps
    assert count == num_steps == len(scheduler.timesteps)
    random = torch.Generator().manual_seed(num_steps)
    x, output = torch.randn(2, count, *SHAPE, generator=random)
    order = torch.randperm(count, generator=random)
    expected, noise = torch.empty_like(x), torch.empty_like(x)
    options = {} if eta is None else {"eta": eta}
    for row, step in enumerate(order.tolist()):
        t, seed = scheduler.timesteps[step], 1000 + row
        expected[row] = scheduler.step(
            output[row, None],
            t,
            x[row, None],
            generator=torch.Generator().manual_seed(seed),
            return_dict=False,
            **options,
        )[0]
        noise[row] = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    mean = process.mean(output, x, order)
    assert mean.shape == x.shape and mean.dtype == torch.float32
    std = process.std_at(order, mean)
    assert std.shape == (count, 1, 1)
    torch.testing.assert_close(mean + std * noise, expected, rtol=1e-5, atol=1e-5)
    assert process.log_prob(expected, mean, order).isfinite().all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_draws_what_the_scheduler_draws(prediction, spacing, eta):
    flags = itertools.product((True, False), (0, 1), (True, False), NUM_STEPS)
    for to_one, offset, clip, num_steps in flags:
        scheduler = DDIMScheduler(
            **STABLE_DIFFUSION,
            prediction_type=prediction,
            timestep_spacing=spacing,
            set_alpha_to_one=to_one,
            steps_offset=offset,
            clip_sample=clip,
        )
        assert_equals_step(scheduler, num_steps, eta)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_ddpm_draws_what_the_scheduler_draws(prediction, spacing, variance):
    for offset, clip, num_steps in itertools.product((0, 1), (True, False), NUM_STEPS):
        scheduler = DDPMScheduler(
            **STABLE_DIFFUSION,
            prediction_type=prediction,
            timestep_spacing=spacing,
            variance_type=variance,
            steps_offset=offset,
            clip_sample=clip,
        )
        assert_equals_step(scheduler, num_steps, None)


@pytest.mark.parametrize(("kind", "eta"), [(DDIMScheduler, 0.5), (DDPMScheduler, None)])
def test_other_beta_schedules(kind, eta):
    assert_equals_step(kind(beta_schedule="squaredcos_cap_v2", clip_sample_range=2.0), 9, eta)
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert_equals_step(kind(**zero_snr, prediction_type="v_prediction"), 9, eta)


@pytest.mark.parametrize(("kind", "eta"), [(DDIMScheduler, 1.0), (DDPMScheduler, None)])
def test_a_visit_to_every_training_timestep(kind, eta):
    """Against the scheduler in float64: its float32 loses 7e-5 on betas of 1e-4, we do not."""
    scheduler = kind(clip_sample=False, num_train_timesteps=200)
    for name in ("alphas_cumprod", "one", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    assert_equals_step(scheduler, 200, eta)


def test_log_prob_is_the_mean_normal_log_density():
    process = reverse_process(DDIMScheduler(**STABLE_DIFFUSION, set_alpha_to_one=False), 10, 0.7)
    mean, noise = torch.randn(2, 9, 4, 5, generator=torch.Generator().manual_seed(0))
    step = torch.tensor([8, 0, 1, 2, 3, 4, 5, 6, 7])
    std = process.std_at(step, mean)
    expected = torch.distributions.Normal(mean, std).log_prob(mean + std * noise).mean((1, 2))
    actual = process.log_prob(mean + std * noise, mean, step)
    assert actual.shape == (9,)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_log_prob_by_hand():
    """One dimension, x one std above its mean: -1/2 - log std - log(2 pi)/2."""
    process = reverse_process(DDPMScheduler(**STABLE_DIFFUSION), 4)
    std = float(process.std[1])
    value = process.log_prob(torch.tensor([[2 + std]]), torch.tensor([[2.0]]), torch.tensor([1]))
    assert float(value) == pytest.approx(-0.5 - math.log(std) - 0.918939, abs=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "last_std"),
    [
        (DDIMScheduler(**STABLE_DIFFUSION, set_alpha_to_one=True, steps_offset=0), 0.0),
        (DDPMScheduler(**STABLE_DIFFUSION, steps_offset=1), 1e-10),  # the scheduler's own clamp
        (DDPMScheduler(**STABLE_DIFFUSION, steps_offset=0), 0.0),  # t = 0 draws no noise
    ],
)
def test_a_deterministic_last_step_is_left_out(scheduler, last_std):
    process = reverse_process(scheduler, 50)
    assert float(process.std[-1]) == pytest.approx(last_std, abs=1e-16)
    assert process.stochastic.tolist() == [True] * 49 + [False]
    for kind in ("uniform", "skip_last", "balanced"):
        weight = step_weights(process, kind)
        assert weight[-1] == 0 and weight.isfinite().all()
        assert float(weight.sum()) == pytest.approx(1)
    mean = torch.randn(2, 3).requires_grad_()
    x = torch.randn(2, 3)  # far outside N(mean, 1e-10): the density would be -1e20
    value = process.log_prob(x, mean, torch.tensor([49, 49]))
    value.sum().backward()
    assert value.tolist() == [0, 0] and mean.grad.abs().max() == 0
    mixed = process.log_prob(x, mean, torch.tensor([49, 0]))
    assert mixed[0] == 0 and mixed[1] != 0


def test_last_std_of_stable_diffusion():
    scheduler = DDIMScheduler(**STABLE_DIFFUSION, set_alpha_to_one=False, steps_offset=1)
    process = reverse_process(scheduler, 50)
    assert process.timesteps[-1] == 1 and process.stochastic.all()
    assert float(process.std[-1]) == pytest.approx(0.0206, abs=5e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
def test_sensitivity_is_the_slope_of_the_mean_over_the_std(kind, prediction):
    scheduler = kind(**STABLE_DIFFUSION, prediction_type=prediction, clip_sample=False)
    process = reverse_process(scheduler, 10)
    steps = torch.arange(9)  # the last is deterministic
    output, x = torch.randn(2, 9, 1, generator=torch.Generator().manual_seed(0))
    output.requires_grad_()
    (slope,) = torch.autograd.grad(process.mean(output, x, steps).sum(), output)
    expected = slope.flatten().abs() / process.std[:9]
    torch.testing.assert_close(process.sensitivity[:9], expected, rtol=2e-4, atol=0.0)


@pytest.mark.parametrize(
    ("scheduler", "num_steps", "message"),
    [
        (EulerDiscreteScheduler(), 10, "EulerDiscreteScheduler.*--scheduler ddim"),
        (DDPMScheduler(variance_type="learned"), 10, "variance_type 'learned'"),
        (DDPMScheduler(variance_type="learned_range"), 10, "variance_type 'learned_range'"),
        (DDPMScheduler(variance_type="fixed_large_log"), 10, "variance_type 'fixed_large_log'"),
        (DDIMScheduler(thresholding=True), 10, "thresholding"),
        (DDPMScheduler(thresholding=True), 10, "thresholding"),
        (DDIMScheduler(prediction_type="flow"), 10, "'flow'"),
        (DDIMScheduler(), 0, "between 1 and 1000, got 0"),
        (DDIMScheduler(), 1001, "between 1 and 1000, got 1001"),
        (DDIMScheduler(steps_offset=1), 1000, "timestep 1000.*another number of steps"),
        # 1000 / (1000 / 61) rounds up to more than 61, and diffusers appends timestep -1
        (DDIMScheduler(timestep_spacing="trailing"), 61, "timestep -1.*another number of steps"),
    ],
)
def test_what_has_no_density_is_refused(scheduler, num_steps, message):
    with pytest.raises(InputError, match=message) as raised:
        reverse_process(scheduler, num_steps)
    assert "\n" not in str(raised.value)


def test_eta_must_leave_room_for_the_signal_and_draw_noise():
    with pytest.raises(InputError, match="eta"):
        reverse_process(DDIMScheduler(**STABLE_DIFFUSION), 10, eta=1.5)
    process = reverse_process(DDIMScheduler(**STABLE_DIFFUSION), 10, eta=0.0)
    assert not process.stochastic.any()
    with pytest.raises(InputError, match="--eta 1"):
        step_weights(process, "uniform")
