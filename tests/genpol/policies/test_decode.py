"""`ChunkPolicy.decode`: noise determines the action."""

import pytest
import torch
from torch import Generator
from toy_policies import make, states

from offline.errors import SpecError

CHAINS = ("diffusion", "flow")


def noise(rows, n, seed=0):
    return torch.randn(rows, n, 4, generator=Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["diffusion", "flow", "gaussian"])
def test_decode_has_no_other_noise(kind):
    policy, obs = make(kind), states(5, seed=0)
    act = policy.decode(obs, noise(5, 3))
    assert policy.has_decode and act.shape == (5, 3, 2, 2) and not act.requires_grad
    assert torch.equal(act, policy.decode(obs, noise(5, 3)))
    assert not torch.equal(act, policy.decode(obs, noise(5, 3, seed=1)))
    zero = policy.decode(obs, torch.zeros(5, 1, 4))[:, 0]
    assert torch.allclose(zero, policy.mode(obs), atol=1e-6)


@pytest.mark.parametrize("kind", ["flow", "gaussian"])
def test_sampling_is_decoding_drawn_noise(kind):
    policy, obs = make(kind), states(5, seed=0)
    act = policy.sample(obs, 3, Generator().manual_seed(0))
    assert torch.equal(act, policy.decode(obs, noise(5, 3)))


def test_a_diffusion_policy_decodes_by_ddim_whatever_its_sampler():
    obs = states(5, seed=0)
    ancestral, implicit = make("diffusion"), make("diffusion", sampler="ddim")
    act = ancestral.decode(obs, noise(5, 3))
    assert torch.equal(act, implicit.decode(obs, noise(5, 3)))
    drawn = implicit.sample(obs, 3, Generator().manual_seed(0))
    assert torch.equal(act, drawn)


def test_a_gaussian_is_its_mean_and_std():
    policy, obs = make("gaussian"), states(5, seed=0)
    with torch.no_grad():
        mean, std = policy.head(policy.encode(obs))
    want = (mean[:, None] + std[:, None] * noise(5, 3)).clamp(-1, 1)
    assert torch.allclose(policy.decode(obs, noise(5, 3)).flatten(2), want, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 2)])
def test_noise_of_another_shape_is_refused(shape):
    with pytest.raises(SpecError, match=r"noise \(B, n, H \* A = 4\)"):
        make("flow").decode(states(5, seed=0), torch.zeros(shape))


@pytest.mark.parametrize("kind", CHAINS)
def test_all_steps_is_the_whole_chain(kind):
    policy, obs = make(kind), states(5, seed=0)
    whole = policy.decode(obs, noise(5, 3))
    assert torch.allclose(whole, policy.decode(obs, noise(5, 3), steps=10), atol=1e-6)
