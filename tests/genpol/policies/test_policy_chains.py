"""Our policies as denoising policies: the chains are the policies' own, and so are the losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator
from toy_policies import CHUNK, DIM, SPEC, make, states

from diffusion.chain import draw, sample_chain, score_steps
from diffusion.forward import Draws, denoise
from diffusion.scores import take
from genpol.policies.chains import PolicyChains, joined
from offline.errors import InputError

D = CHUNK * DIM


def seeds(count, seed=0):
    return [Generator().manual_seed(100 * seed + i) for i in range(count)]


def chains_of(kind, **settings):
    sizes = {key: settings.pop(key) for key in ("network", "sampler") if key in settings}
    policy = make(kind, **sizes)
    for weight in policy.head.parameters():  # a plain trunk at first says too little
        torch.nn.init.normal_(weight, std=0.2, generator=Generator().manual_seed(1))
    if "flow_sampler" in settings:
        settings["sampler"] = settings.pop("flow_sampler")
    return PolicyChains(policy, **settings)


@pytest.mark.parametrize("network", ["factored", "residual"])
@pytest.mark.parametrize("noise", [{"flow_sampler": "ode"}, {"noise_level": 0.0}])
def test_without_noise_a_flow_is_drawn_by_its_own_euler_steps(network, noise):
    chains, obs = chains_of("flow", network=network, **noise), states(3, seed=0)
    found = sample_chain(chains.predict, chains.process, chains.condition(obs), (D,), seeds(3))
    first = draw((D,), seeds(3), torch.empty(0))
    expected = chains.policy.decode(obs, first[:, None])[:, 0]
    assert not chains.process.stochastic.any()
    torch.testing.assert_close(chains.action(found.sample), expected, atol=1e-5, rtol=1e-5)
    assert found.sample.abs().max() > 1  # so that the clip at the end was seen to be left out


@pytest.mark.parametrize(
    ("network", "sampler"), [("factored", "ddpm"), ("residual", "ddpm"), ("factored", "ddim")]
)
def test_a_diffusion_policy_is_drawn_by_its_own_chain(network, sampler):
    chains, obs = chains_of("diffusion", network=network, sampler=sampler), states(3, seed=0)
    found = sample_chain(chains.predict, chains.process, chains.condition(obs), (D,), seeds(3))
    head, streams = chains.policy.head, seeds(3)
    noise = torch.stack([draw((D,), streams, torch.empty(0)) for _ in range(head.num_steps)])
    with torch.no_grad():
        expected = head(chains.policy.encode(obs), noise[:, :, None], head.chains[sampler])[:, 0]
    torch.testing.assert_close(found.sample, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(chains.action(found.sample), chains.chunk(found.sample))


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_stored_steps_score_as_they_were_drawn(kind):
    """In another order and another batch, with gradients for all that is trained."""
    chains, obs = chains_of(kind), states(2, seed=1)
    cond, group = chains.condition(obs), torch.tensor([0, 0, 1, 1])
    found = sample_chain(chains.predict, chains.process, take(cond, group), (D,), seeds(4))
    steps = chains.process.stochastic.nonzero()[:, 0]
    rows = torch.arange(4).repeat(len(steps))[torch.randperm(4 * len(steps))]
    at = steps.repeat_interleave(4)[torch.argsort(rows, stable=True)]
    rows = rows.sort().values
    again = score_steps(chains.predict, chains.process, found, take(cond, group[rows]), rows, at)
    torch.testing.assert_close(again, found.log_prob[rows, at], atol=1e-5, rtol=1e-5)
    assert found.log_prob[:, chains.process.stochastic].abs().min() > 0
    again.sum().backward()
    trained = chains.trainable()
    assert all(weight.grad is not None and weight.grad.any() for weight in trained.values())
    assert not any(name.startswith("encoder") for name in trained)


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_rows_of_one_observation_share_its_passes(kind):
    """As many rows go through the body as there are observations, with the same output."""
    chains, obs = chains_of(kind), states(2, seed=2)
    group = torch.tensor([1, 0, 1, 1, 0, 1])
    cond, x = take(chains.condition(obs), group), torch.randn(6, D, generator=seeds(1)[0])
    t = chains.process.timesteps_at(torch.tensor([0, 0, 3, 3, 3, 0]))
    passed = []
    handle = chains.policy.body.register_forward_hook(lambda *got: passed.append(len(got[2])))
    together = chains.predict(x, t, cond)
    handle.remove()
    apart = cond | {"row": torch.arange(6)}
    torch.testing.assert_close(together, chains.predict(x, t, apart), atol=1e-5, rtol=1e-5)
    assert passed == [2]
    both = joined([chains.condition(states(1, seed=3)), chains.condition(obs)])
    assert both["row"].tolist() == [0, 1, 2] and both["encoding"].shape[0] == 3


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_the_forward_loss_is_the_policys_own(kind):
    """The same time and noise give the loss that the policy was cloned with."""
    chains, obs = chains_of(kind), states(4, seed=4)
    process, act = chains.forward, torch.rand(4, D, generator=seeds(1)[0]) - 0.5
    at = torch.tensor([0, 2, 5, 8]) if kind == "diffusion" else torch.tensor([100, 300, 600, 990])
    noise = torch.randn(4, D, generator=seeds(1, 1)[0])
    each = torch.arange(4)
    draws = Draws(at[:, None], noise[:, None])
    cond = chains.condition(obs)
    found = denoise(
        chains.predict, process, act, draws, each, each, torch.zeros_like(each), cond
    ).loss()
    head, features = chains.policy.head, chains.policy.encode(obs)
    if kind == "diffusion":
        noisy = head.a[at, None] * act + head.s[at, None] * noise
        modulation = head.conditioner(features, head.conditioner.embed(head.times)[at])
        expected = (head.trunk(noisy, modulation) - noise).square().mean(-1)
    else:
        time = process.timestep[at]
        modulation = head.conditioner(features, head.conditioner.embed(time))
        between = torch.lerp(noise, act, time[:, None])
        expected = (head.trunk(between, modulation) - (act - noise)).square().mean(-1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_bound_of_a_diffusion_policy_is_that_of_its_chain():
    """Weighed by "elbo", two outputs differ by T times the KL of the chain's step, per dimension,
    where nothing is clipped."""
    chains = chains_of("diffusion")
    process, forward = replace(chains.process, clip_range=None), chains.forward
    x, *outputs = torch.randn(3, 1, D, generator=seeds(1)[0])
    apart = float((outputs[0] - outputs[1]).square().mean())
    for step in process.stochastic.nonzero()[:, 0].tolist():
        i = torch.tensor([step])
        gap = process.mean(outputs[0], x, i) - process.mean(outputs[1], x, i)
        kl = float((gap / process.std[step]).square().mean()) / 2
        at = torch.tensor([process.num_steps - 1 - step])
        half = float(forward.half_weight("elbo", at))
        assert half * apart == pytest.approx(process.num_steps * kl, rel=1e-3)
    assert forward.half_weight("elbo", torch.tensor([0])) > 0  # the step without a density


def test_a_reference_stays_as_it_was():
    chains = chains_of("flow", noise_level=0.3)
    cond, t = chains.condition(states(2, seed=0)), torch.zeros(2)
    frozen, x = chains.frozen(), torch.randn(2, D, generator=seeds(1)[0])
    before = frozen.predict(x, t, cond)
    torch.testing.assert_close(before, chains.predict(x, t, cond), rtol=0, atol=0)
    with torch.no_grad():
        for weight in chains.trainable().values():
            weight.add_(0.1)
    assert torch.equal(frozen.predict(x, t, cond), before)
    assert not torch.allclose(chains.predict(x, t, cond), before)
    assert frozen.process.std.tolist() == chains.process.std.tolist()
    assert not before.requires_grad


def test_what_is_executed_is_clipped_and_what_is_scored_is_not():
    chains = chains_of("flow")
    x = torch.tensor([[2.0, -3.0, 0.5, 0.0]])
    assert chains.action(x).tolist() == [[[1.0, -1.0], [0.5, 0.0]]]
    assert chains.chunk(x).tolist() == [[[2.0, -3.0], [0.5, 0.0]]]
    wide = PolicyChains(make("flow", spec=replace(SPEC, scale="mean_std")))
    assert wide.action(x).tolist() == wide.chunk(x).tolist()


@pytest.mark.parametrize("kind", ["gaussian", "student"])
def test_policies_that_do_not_denoise_are_refused(kind):
    with pytest.raises(InputError, match=f"a {kind} policy has no denoising steps"):
        PolicyChains(make(kind))


def test_a_black_box_is_refused():
    with pytest.raises(InputError, match="object cannot be fine-tuned"):
        PolicyChains(object())


def test_where_there_are_no_densities_it_is_said():
    chains_of("flow").require_densities("--agent prdp")
    chains_of("diffusion").require_densities("--agent prdp")
    with pytest.raises(InputError, match="--agent prdp scores .* --noise-level above 0"):
        chains_of("flow", noise_level=0.0).require_densities("--agent prdp")
    with pytest.raises(InputError, match="samples by ddim"):
        chains_of("diffusion", sampler="ddim").require_densities("--agent ddpo")


@pytest.mark.parametrize("network", ["factored", "residual"])
@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_what_is_computed_ahead_of_a_chain_changes_no_number(kind, network):
    chains, obs = chains_of(kind, network=network), states(3, seed=0)
    cond = chains.condition(obs)
    drawn = [
        sample_chain(predict, chains.process, cond, (D,), seeds(3))
        for predict in (chains.predict, chains.drawer(cond))
    ]
    torch.testing.assert_close(drawn[0].x, drawn[1].x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(drawn[0].log_prob, drawn[1].log_prob, atol=1e-4, rtol=1e-5)
