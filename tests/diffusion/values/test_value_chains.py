"""Which states of chains are kept, and that they are those that the chains went through."""

from __future__ import annotations

import pytest
import torch
from family_images import policy_of
from tiny_rewards import brightness

from diffusion.chain import sample_chain
from diffusion.fitting import Fitting
from diffusion.scores import take
from diffusion.streams import VALUE_ROLLOUT, generators
from diffusion.values.chains import draw_round, states_of

PROMPTS = ["a cat", "a dog!", "two"]


def test_all_states_of_a_short_chain_are_kept():
    assert states_of(4, 5, seed=0).tolist() == [[0, 1, 2, 3, 4]]
    assert states_of(4, 12, seed=0, prompts=[7, 8]).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_of_a_long_chain_each_part_gives_one_and_the_last_is_kept():
    assert states_of(50, 6, seed=0).tolist() == [[0, 10, 20, 30, 40, 50]]
    rows = states_of(50, 6, seed=0, prompts=range(200))
    parts = rows[:, :-1] // 10
    assert torch.equal(parts, torch.arange(5).expand(200, -1)) and (rows[:, -1] == 50).all()
    assert rows[:, :-1].unique().tolist() == list(range(50))  # together they cover the chain
    again = states_of(50, 6, seed=0, prompts=range(100, 200))
    assert torch.equal(again, rows[100:])  # of a prompt, whatever others are drawn beside it
    assert not torch.equal(again, states_of(50, 6, seed=1, prompts=range(100, 200)))


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_what_is_kept_is_what_the_chain_went_through(name):
    policy = policy_of(name)
    process = policy.process(3, sampler="cps")
    cond = policy.encode(PROMPTS)
    states = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0], [3, 2, 1, 0]])
    found = draw_round(
        policy,
        process,
        brightness,
        PROMPTS,
        cond,
        images=2,
        states=states,
        seed=5,
        purpose=VALUE_ROLLOUT,
        first=4,
        batch=Fitting(4),
    )
    owner = torch.arange(3).repeat_interleave(2)
    seeds = generators(5, VALUE_ROLLOUT, 0, range(8, 14))  # of the prompts 4, 5 and 6
    each = take(cond, owner)
    chain = sample_chain(policy.predict, process, each, policy.latent_shape, seeds)
    for i in range(4):
        rows, places = (states == i).nonzero(as_tuple=True)
        x = found.x[rows, :, places].flatten(0, 1).float()
        torch.testing.assert_close(x, chain.x[i].bfloat16().float(), atol=0.02, rtol=0.02)
        hat = found.x0_hat[rows, :, places].flatten(0, 1).float()
        if i == 0:
            assert not hat.any()
            continue
        step = torch.full((6,), i - 1)
        x_t = chain.x[i - 1]
        output = policy.predict(x_t, process.timesteps_at(step), each)
        expected = process.x0_hat(output, x_t, step)
        torch.testing.assert_close(hat, expected.bfloat16().float(), atol=0.05, rtol=0.05)
        mean = process.mean(output, x_t, step)
        if not process.stochastic[i - 1]:
            torch.testing.assert_close(mean, chain.x[i])
    rewards = brightness(policy.decode(chain.sample), [])
    torch.testing.assert_close(found.reward.flatten(), rewards)
    assert torch.equal(found.step, states)
