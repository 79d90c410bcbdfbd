"""`Draft`: the same policy's proposals, cheaper."""

import pytest
import torch
from torch import Generator
from toy_policies import make, modes, states, train

from genpol.agents.candidates import Draft
from genpol.policies.diffusion import action_process, chain_steps
from offline.errors import InputError
from offline.types import Policy


def generator(seed=0):
    return Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=["diffusion", "flow"])
def learnt(request):
    policy = make(request.param)
    train(policy, 500)
    return policy.eval()


def test_it_is_a_policy_that_follows_its_base():
    base = make("flow")
    draft, obs = Draft(base, steps=2), states(4, seed=0)
    assert isinstance(draft, Policy)
    before = draft.sample(obs, 3, generator())
    assert before.shape == (4, 3, 2, 2)
    with torch.no_grad():
        base.head.conditioner.out.bias.add_(0.1)
    assert not torch.equal(before, draft.sample(obs, 3, generator()))
    assert torch.equal(base.sample(obs, 3, generator()), Draft(base).sample(obs, 3, generator()))


def test_two_steps_still_find_the_modes(learnt):
    obs = states(40, seed=-4)
    act = Draft(learnt, steps=2).sample(obs, 50, generator())
    distance = (act[None] - modes(obs)[:, :, None]).abs().amax((-1, -2))
    assert (distance.amin(0) < 0.3).float().mean() > 0.5


def test_two_euler_steps_by_hand():
    policy, obs = make("flow"), states(5, seed=0)
    noise = torch.randn(5, 1, 4, generator=generator())
    head, x = policy.head, noise[:, 0]
    with torch.no_grad():
        features = policy.encode(obs)
        for time in (0.0, 0.5):
            embedding = head.conditioner.embed(torch.tensor([time]))
            x = x + 0.5 * head.trunk(x, head.conditioner(features, embedding))
    act = Draft(policy, steps=2).decode(obs, noise)
    assert torch.allclose(act[:, 0].flatten(1), x.clamp(-1, 1), atol=1e-5)


def test_a_long_ddim_step_lies_on_the_whole_chain():
    """With the exact noise of a point mass, it leads to the same place as five short ones."""
    process = action_process(10, "ddim", clip=True, visited=2)
    assert process.timesteps.tolist() == [9, 4]
    x0, x = 0.3, torch.tensor(1.7, dtype=torch.float64)
    eps = (x - process.sqrt_alpha[0] * x0) / process.sqrt_noise[0]
    step = chain_steps(process)[0]
    after = step.c_x * x + step.c_x0 * x0
    whole = action_process(10, "ddim", clip=True)  # at its sixth visit, timestep 4
    assert whole.timesteps[5] == 4
    assert torch.allclose(after, whole.sqrt_alpha[5] * x0 + whole.sqrt_noise[5] * eps, atol=1e-6)


@pytest.mark.parametrize("network", ["factored", "residual"])
def test_bfloat16_is_close(network):
    policy, obs = make("diffusion", network=network), states(50, seed=0)
    noise = torch.randn(50, 8, 4, generator=generator())
    coarse = Draft(policy, dtype=torch.bfloat16).decode(obs, noise)
    assert 0 < (coarse - policy.decode(obs, noise)).abs().max() < 0.05


def test_steps_that_cannot_be_taken_are_named():
    obs = states(2, seed=0)
    with pytest.raises(InputError, match="3 steps do not divide the 10"):
        Draft(make("diffusion"), steps=3).sample(obs, 1, generator())
    with pytest.raises(InputError, match="gaussian policy cannot be sampled in 2 steps"):
        Draft(make("gaussian"), steps=2).sample(obs, 1, generator())
    with pytest.raises(InputError, match="in 0 steps"):
        Draft(make("flow"), steps=0).sample(obs, 1, generator())
