"""The network published with EXPO: the same function, computed in two parts."""

import json

import pytest
import torch
from torch import Generator
from torch.nn import functional as F
from toy_policies import make, modes, states, train

from genpol.policies.architecture import Architecture
from genpol.policies.policy import load_policy
from genpol.policies.residual import FREQUENCIES, WIDTH, ResidualConditioner, ResidualTrunk
from offline.errors import InputError

KINDS = ("diffusion", "flow")


def generator(seed=0):
    return Generator().manual_seed(seed)


def test_it_is_the_published_network():
    """One dense layer on [action, state, time], three residual blocks, one dense layer."""
    trunk = ResidualTrunk(4)
    conditioner = ResidualConditioner(39, trunk, 10)
    x, state, time = torch.randn(6, 4), torch.randn(6, 39), torch.rand(6)
    out = trunk(x, conditioner(state, conditioner.embed(time)))

    angles = 2 * torch.pi * time[:, None] * conditioner.frequencies
    first, _, second = conditioner.time
    tau = second(F.silu(first(torch.cat([angles.cos(), angles.sin()], 1))))
    weight = torch.cat(
        [trunk.act_in.weight, conditioner.obs_in.weight, conditioner.time_in.weight], 1
    )
    h = torch.cat([x, state, tau], 1) @ weight.T + conditioner.obs_in.bias
    for block in trunk.blocks:
        h = h + block.down(F.silu(block.up(block.norm(h))))
    assert torch.allclose(out, trunk.out(F.silu(h)), atol=1e-5)

    sizes = sum(p.numel() for p in (*trunk.parameters(), *conditioner.parameters()))
    dense = (4 + 39 + WIDTH + 1) * WIDTH + 3 * (2 * WIDTH * 1024 + 1024 + WIDTH) + (WIDTH + 1) * 4
    time_net = FREQUENCIES + (2 * FREQUENCIES + 1) * WIDTH + (WIDTH + 1) * WIDTH
    assert sizes == dense + time_net + 3 * 2 * WIDTH  # LayerNorms


@pytest.mark.parametrize("rows", [5, 700])  # below and above what runs at a time
def test_without_gradients_it_is_the_same(rows):
    trunk = ResidualTrunk(4)
    x, modulation = torch.randn(rows, 3, 4), torch.randn(rows, 1, WIDTH)
    kept = modulation.clone(), x.clone()
    with torch.no_grad():
        quick = trunk(x, modulation)
    assert torch.allclose(quick, trunk(x, modulation), atol=1e-5)
    assert torch.equal(modulation, kept[0]) and torch.equal(x, kept[1])


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_is_computed_like_many(kind):
    policy, obs = make(kind, network="residual"), states(3, seed=0)
    noise = torch.randn(3, 6, 4, generator=generator())
    act = policy.decode(obs, noise)
    alone = policy.decode({"state": obs["state"][1:2]}, noise[1:2])
    assert torch.allclose(alone[0], act[1], atol=1e-5)


def test_time_and_observation_are_computed_once_per_chain():
    policy, calls = make("diffusion", network="residual"), []
    policy.head.conditioner.time.register_forward_hook(lambda *_: calls.append("time"))
    policy.head.conditioner.obs_in.register_forward_hook(lambda *_: calls.append("obs"))
    policy.sample(states(4, seed=0), 8, generator())
    assert calls == ["time", "obs"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_both_modes_are_found(kind):
    policy = make(kind, network="residual", denoising_steps=5)
    train(policy, 120, lr=1e-3)
    obs = states(20, seed=-1)
    act = policy.sample(obs, 50, generator())
    distance = (act[None] - modes(obs)[:, :, None]).abs().amax((-1, -2))
    assert (distance.amin(0) < 0.25).float().mean() > 0.8
    assert 0.5 < (distance[0] < distance[1]).float().mean() < 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_moves_actions_a_little_only(kind):
    policy, obs = make(kind, network="residual"), states(64, seed=0)
    noise = torch.randn(64, 8, 4, generator=generator())
    exact, coarse = policy.decode(obs, noise), policy.decode(obs, noise, torch.bfloat16)
    assert coarse.dtype == torch.float32
    assert 0 < (exact - coarse).abs().max() < 0.05
    with torch.no_grad():
        policy.head.trunk.out.bias.add_(0.5)  # an update is followed at once
    moved = policy.decode(obs, noise)
    assert (policy.decode(obs, noise, torch.bfloat16) - moved).abs().max() < 0.05
    assert (moved - exact).abs().max() > 0.05


def test_saved_and_loaded(tmp_path):
    policy = make("flow", network="residual")
    policy.save(tmp_path)
    loaded = load_policy(tmp_path)
    obs = states(3, seed=0)
    assert loaded.architecture.network == "residual"
    assert torch.equal(loaded.sample(obs, 2, generator()), policy.sample(obs, 2, generator()))


def test_policies_saved_before_there_was_a_choice_are_factored(tmp_path):
    policy = make("flow")
    policy.save(tmp_path)
    path = tmp_path / "policy.json"
    document = json.loads(path.read_text())
    assert document["architecture"].pop("network") == "factored"
    path.write_text(json.dumps(document))
    obs = states(3, seed=0)
    assert torch.equal(load_policy(tmp_path).mode(obs), policy.mode(obs))


def test_an_unknown_network_is_named():
    with pytest.raises(InputError, match='unknown network "residul".*residual'):
        make("flow", network="residul")
    assert Architecture().network == "factored"
