"""Samplers of flow models against diffusers, their formulas and the densities they claim."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusion.chain import sample_chain, score_chain
from diffusion.errors import InputError
from diffusion.flow import SAMPLERS, flow_process

STEPS = 6


def velocity(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    x, v = torch.randn(2, 3, 4, 5, 5, generator=random)
    return x, v


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [{}, {"mu": 0.8}], ids=["static", "by image"])
def test_at_zero_noise_every_sampler_is_diffusers_euler_step(sampler, schedule):
    moving = bool(schedule)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=moving)
    process = flow_process(scheduler, STEPS, sampler, 0.0, schedule=schedule)
    assert not process.stochastic.any()
    x, v = velocity()
    for i in range(STEPS):
        scheduler.set_timesteps(STEPS, **schedule)
        expected = scheduler.step(v, scheduler.timesteps[i], x).prev_sample
        got = process.mean(v, x, torch.full((3,), i))
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)
        assert process.timesteps[i] == scheduler.timesteps[i]


@pytest.mark.parametrize("sampler", ["flow-sde", "dance-sde"])
def test_the_sdes_follow_their_formula(sampler):
    eta, scheduler = 0.7, FlowMatchEulerDiscreteScheduler()
    process = flow_process(scheduler, STEPS, sampler, eta)
    x, v = velocity()
    sigmas = scheduler.sigmas.double()
    for i in range(STEPS):
        t, dt = sigmas[i], sigmas[i + 1] - sigmas[i]
        safe = t if t < 1 else sigmas[1]
        sigma = eta * (safe / (1 - safe)).sqrt() if sampler == "flow-sde" else torch.tensor(eta)
        mean = x + (v + sigma**2 / (2 * t) * (x + (1 - t) * v)) * dt
        torch.testing.assert_close(
            process.mean(v, x, torch.full((3,), i)), mean.float(), atol=2e-6, rtol=1e-5
        )
        assert process.std[i] == pytest.approx(float(sigma * (-dt).sqrt()))


def test_cps_keeps_the_noise_level_of_the_schedule():
    """|coefficient of eps|^2 + std^2 = s^2, and the last step has no density."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    process = flow_process(scheduler, STEPS, "cps", 0.4)
    s = scheduler.sigmas[1:].double()
    torch.testing.assert_close(process.c_eps**2 + process.std**2, s**2)
    torch.testing.assert_close(process.std, s * math.sin(0.2 * math.pi))
    assert process.stochastic.tolist() == [True] * (STEPS - 1) + [False]


@pytest.mark.parametrize("sampler", ["flow-sde", "dance-sde"])
def test_marginals_are_those_of_the_ode(sampler):
    """Where the data are N(0, 1), x_t has variance (1 - t)^2 + t^2 whatever the sampler; the exact
    velocity is known. 40 steps: what is left is the step size's error."""
    steps, count = 40, 20_000
    process = flow_process(FlowMatchEulerDiscreteScheduler(), steps, sampler, 0.5)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, generator=random)
    for i in range(steps):
        t = float(process.sqrt_noise[i])
        v = x * ((2 * t - 1) / ((1 - t) ** 2 + t**2))  # E[eps - x_0 | x_t]
        step = torch.full((count,), i)
        mean = process.mean(v, x, step)
        x = mean + process.std_at(step, mean) * torch.randn(count, 1, generator=random)
    assert float(x.var()) == pytest.approx(1.0, abs=0.07)


@pytest.mark.parametrize("sampler", ["flow-sde", "dance-sde", "cps"])
def test_a_drawn_chain_scores_as_it_was_drawn_and_its_density_is_a_normals(sampler):
    def predict(x, t, cond):
        return torch.tanh(x) * (t / 1000).view(-1, 1)

    process = flow_process(FlowMatchEulerDiscreteScheduler(), STEPS, sampler, 0.6)
    streams = [torch.Generator().manual_seed(i) for i in range(4)]
    chain = sample_chain(predict, process, {}, (7,), streams)
    torch.testing.assert_close(
        score_chain(predict, process, chain, {}), chain.log_prob, atol=0, rtol=0
    )
    i = 2
    mean = process.mean(
        predict(chain.x[i], process.timesteps[i].expand(4), {}), chain.x[i], torch.full((4,), i)
    )
    normal = torch.distributions.Normal(mean, float(process.std[i]))
    torch.testing.assert_close(normal.log_prob(chain.x[i + 1]).mean(1), chain.log_prob[:, i])


def test_a_window_draws_noise_inside_it_and_is_the_ode_outside():
    scheduler = FlowMatchEulerDiscreteScheduler()
    inside = flow_process(scheduler, STEPS, "cps", 0.5, window=(2, 4))
    whole = flow_process(scheduler, STEPS, "cps", 0.5)
    ode = flow_process(scheduler, STEPS, "ode")
    assert inside.stochastic.tolist() == [False, False, True, True, False, False]
    for i in range(STEPS):
        like = whole if 2 <= i < 4 else ode
        assert inside.c_eps[i] == like.c_eps[i] and inside.std[i] == like.std[i]


@pytest.mark.parametrize(
    ("sampler", "noise", "said"),
    [
        ("cps", 1.1, "at most 1 for cps"),
        ("flow-sde", -0.1, "at least 0"),
        ("flow-sde", float("nan"), "at least 0"),
        ("flow", 0.5, 'Did you mean "flow-sde"?'),
    ],
)
def test_samplers_and_noise_levels_that_cannot_be_are_refused(sampler, noise, said):
    with pytest.raises(InputError, match="at|mean") as error:
        flow_process(FlowMatchEulerDiscreteScheduler(), STEPS, sampler, noise)
    assert said in str(error.value)
