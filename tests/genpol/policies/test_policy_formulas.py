"""Losses and chains of our own policies against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Generator
from toy_policies import CHUNK, DIM, make, states

from diffusion.process import reverse_process
from genpol.policies.diffusion import action_process, vp_betas


def generator(seed=0):
    return Generator().manual_seed(seed)


def test_flow_target_is_action_minus_noise():
    policy = make("flow")
    obs, act = states(1, seed=0), torch.full((1, CHUNK, DIM), 0.5)
    draw = generator(3)
    time = torch.rand(1, generator=draw)
    noise = torch.randn(1, CHUNK * DIM, generator=draw)
    seen = {}

    def trunk(x, modulation):
        seen["x"] = x
        return torch.zeros_like(x)

    policy.head.trunk.forward = trunk
    loss = policy.loss(obs, act, generator(3))
    assert torch.allclose(seen["x"], (1 - time) * noise + time * 0.5)
    assert torch.allclose(loss, (0.5 - noise).square().mean(-1))


def test_diffusion_loss_is_the_error_of_the_noise():
    policy = make("diffusion")
    policy.head.trunk.forward = lambda x, modulation: torch.zeros_like(x)
    draw = generator(3)
    torch.randint(10, (1,), generator=draw)
    eps = torch.randn(1, CHUNK * DIM, generator=draw)
    loss = policy.loss(states(1, seed=0), torch.zeros(1, CHUNK, DIM), generator(3))
    assert torch.allclose(loss, eps.square().mean(-1))


def test_gaussian_loss_is_the_negative_log_density():
    policy, obs = make("gaussian"), states(2, seed=0)
    act = torch.zeros(2, CHUNK, DIM)
    mean, std = policy.head(policy.encode(obs))
    expected = -torch.distributions.Normal(mean, std).log_prob(act.flatten(1)).mean(-1)
    assert torch.allclose(policy.loss(obs, act, None), expected, atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_chain_knows_its_own_data(sampler):
    """With the exact noise of a point mass at x0, every step's mean is the posterior's."""
    policy = make("diffusion", sampler=sampler)
    head, x0 = policy.head, torch.tensor([0.5, -0.5, 0.9, 0.0])
    process = action_process(10, sampler, clip=True)
    position = {"i": 0}

    def exact(x, modulation, apply):
        i = position["i"]
        position["i"] += 1
        return (x - process.sqrt_alpha[i].float() * x0) / process.sqrt_noise[i].float()

    head.trunk.forward = exact
    act = policy.sample(states(1, seed=0), 7, generator())
    assert torch.allclose(act.flatten(2), x0.expand(1, 7, 4), atol=1e-4)


def test_ddpm_steps_are_those_of_diffusers():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        10, trained_betas=vp_betas(10).tolist(), variance_type="fixed_small", clip_sample=True
    )
    table = reverse_process(scheduler, 10)
    policy = make("diffusion")
    x, eps = torch.randn(2, 5, 4, generator=generator())
    for i, step in enumerate(policy.head.chains["ddpm"]):
        x0 = (x * step.inv_a - eps * step.s_over_a).clamp(-1, 1)
        mean = step.c_x0 * x0 + step.c_x * x
        assert torch.allclose(mean, table.mean(eps, x, torch.full((5,), i)), atol=1e-5)
        assert math.isclose(step.std, float(table.std[i]), abs_tol=1e-9)
    assert policy.head.chains["ddpm"][-1].std == 0
